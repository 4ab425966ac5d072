"""One POST to a receiver: to an address that was looked up once and checked, within one time limit, without redirects.

httpcore is used as it is, not through httpx: it follows no redirect, reads no proxy from the environment, keeps no
cookie and unpacks nothing.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

import certifi
import httpcore

from shared.addresses import is_public
from shared.deliveries import GONE, Answer

Resolve = Callable[[str, int], Sequence[str]]

BODY_BYTES = 4096  # of an answer; the rest is never read
ANSWER_BYTES = 2**18  # of all that comes in: headers and interim answers have no end otherwise
SHOWN = 1024  # characters of an answer in the log
DETAIL = 512
MOST_ADDRESSES = 4  # that are tried, of those that a name has


class Unsent(Exception):
    """Nothing was sent: `code` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True)
class Deadline:
    """The moment at which a try is over, whatever it is doing; monotonic seconds."""

    at: float

    def left_s(self) -> float:
        """Seconds that are left; httpcore.ReadTimeout when none are."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the time limit is reached")
        return left


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host as the system's resolver knows them; OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


@cache
def trusted() -> ssl.SSLContext:
    """Who may vouch for a receiver: Mozilla's list, and the system's (`SSL_CERT_FILE` is OpenSSL's own setting)."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    private: bool,
    resolve: Resolve = resolved,
) -> Answer:
    """Send `body` to `url` and say what was met, within `timeout_s`; raises nothing that the network can cause.

    `private` allows http:// and addresses that do not belong to the public internet.
    """
    at, began = datetime.now(UTC), time.monotonic()
    met: dict[str, Any]
    try:
        met = _exchange(urlsplit(url), body, headers, Deadline(began + timeout_s), private, resolve)
    except Unsent as error:
        met = {"error": error.code, "detail": str(error)}
    except httpcore.TimeoutException:
        met = {"error": "timeout", "detail": f"There was no complete answer within {timeout_s:g} s."}
    except httpcore.ConnectError as error:
        met = {"error": "connect_failed", "detail": str(error)[:DETAIL]}
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        met = {"error": "connection_lost", "detail": str(error)[:DETAIL]}
    return Answer(at, round((time.monotonic() - began) * 1000), **met)


def _exchange(
    url: SplitResult, body: bytes, headers: Mapping[str, str], deadline: Deadline, private: bool, resolve: Resolve
) -> dict[str, Any]:
    if url.scheme != "https" and not private:  # made while the operator still allowed it
        raise Unsent("not_https", "Events are sent to https:// only.")
    host, port = url.hostname or "", url.port or {"https": 443, "http": 80}[url.scheme]
    addresses = _addresses(host, port, deadline, private, resolve)
    # Not httpcore's own reading of a URL, which drops what follows a semicolon in the path.
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    target = httpcore.URL(scheme=url.scheme, host=host, port=port, target=path)
    sent = [("Host", url.netloc), *headers.items()]
    with (
        httpcore.ConnectionPool(ssl_context=trusted(), network_backend=_Pinned(addresses, deadline)) as pool,
        pool.stream("POST", target, headers=sent, content=body) as response,
    ):
        return _read(response)


def _addresses(host: str, port: int, deadline: Deadline, private: bool, resolve: Resolve) -> Sequence[str]:
    """Look the host up once and check every address; Unsent. A resolver has no time limit, so a thread waits for it."""
    found: list[Sequence[str] | Exception] = []

    def look_up() -> None:
        try:
            found.append(resolve(host, port))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(deadline.left_s())
    if not found:
        raise httpcore.ConnectTimeout("the name was not resolved in time")
    if isinstance(found[0], Exception) or not found[0]:
        raise Unsent("name_not_resolved", "The host of the URL has no address.")
    if not private and not all(is_public(address) for address in found[0]):
        # Which address it is stays untold: the names of a network inside are nobody's business.
        raise Unsent("address_not_allowed", "The host of the URL has an address that is not public.")
    return found[0]


def _read(response: httpcore.Response) -> dict[str, Any]:
    """The beginning of an answer and what its status means."""
    body = b""
    for chunk in response.iter_stream():
        body += chunk
        if len(body) >= BODY_BYTES:
            break
    text = body[:BODY_BYTES].decode("utf-8", "replace").replace("\0", "")  # PostgreSQL keeps no NUL in a text
    return {
        "status": response.status,
        "response": text[:SHOWN],
        "retry_after_s": _retry_after_s(response.headers),
        **_meaning(response.status),
    }


def _meaning(status: int) -> dict[str, str]:
    if 200 <= status < 300:
        return {}
    if status == 410:
        return {"error": GONE, "detail": "The receiver answered 410: it wants no more events."}
    if 300 <= status < 400:
        return {"error": "redirect", "detail": f"The receiver answered {status}; redirects are not followed."}
    return {"error": "unsuccessful", "detail": f"The receiver answered {status}."}


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or as a date (RFC 9110, 10.2.3); None when it says neither."""
    value = next((value.decode("latin-1").strip() for name, value in headers if name.lower() == b"retry-after"), "")
    if re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return float(value)
    try:
        asked = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (asked.replace(tzinfo=asked.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class _Pinned(httpcore.NetworkBackend):
    """Connects to the addresses that were checked, whatever name a request carries, and looks up nothing.

    `Host`, SNI and the name in the certificate stay those of the URL: httpcore takes them from there.
    """

    def __init__(self, addresses: Sequence[str], deadline: Deadline) -> None:
        self._addresses, self._deadline = addresses[:MOST_ADDRESSES], deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        """Connect to the first address that answers; each gets its share of the time that is left."""
        for others, address in zip(reversed(range(len(self._addresses))), self._addresses, strict=True):
            try:
                left_s = self._deadline.left_s() / (others + 1)
                return _Timed(self._sockets.connect_tcp(address, port, left_s), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not others:
                    raise
        raise httpcore.ConnectError("no address")


class _Timed(httpcore.NetworkStream):
    """A stream on which every step has only the time that the whole has left, and whose input has an end."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline, self._received = stream, deadline, 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes; httpcore.ReadTimeout, and RemoteProtocolError when the answer is endless."""
        data = self._stream.read(max_bytes, self._deadline.left_s())
        self._received += len(data)
        if self._received > ANSWER_BYTES:
            raise httpcore.RemoteProtocolError("the answer is too long")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes."""
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        """Close the socket."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same stream, encrypted, with the certificate checked against `server_hostname`; Unsent."""
        try:
            encrypted = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s())
        except httpcore.ConnectError as error:
            raise Unsent("tls_failed", str(error)[:DETAIL]) from error
        return _Timed(encrypted, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks about the socket."""
        return self._stream.get_extra_info(info)
