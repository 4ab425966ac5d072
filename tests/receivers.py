"""Receivers of webhooks on real sockets: each does with a request what the test says, and remembers it."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DRIP_S = 0.05


@dataclass(frozen=True)
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[BaseHTTPRequestHandler, "Receiver"], None]


@dataclass
class Receiver:
    """A receiver and what it got; `behave` may be exchanged while it runs."""

    url: str
    behave: Behaviour
    seen: list[Request] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)  # that TLS clients asked for
    ending: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, within_s: float = 30.0) -> list[Request]:
        """Every request, once there are at least `count`; AssertionError when there are not in time."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.seen) >= count, within_s), f"{len(self.seen)} of {count}"
            return list(self.seen)


# ---------------------------------------------------------------- what a receiver can do


def answers(status: int = 200, body: bytes = b"taken", **headers: str) -> Behaviour:
    """Answer, with headers whose names have `_` for `-`."""

    def act(handler: BaseHTTPRequestHandler, _: Receiver) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content_Length": str(len(body))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def one_after_another(*behaviours: Behaviour) -> Behaviour:
    """Behave so at the first request, so at the second, and as the last says from then on."""
    left = list(behaviours)
    lock = threading.Lock()

    def act(handler: BaseHTTPRequestHandler, receiver: Receiver) -> None:
        with lock:
            chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(handler, receiver)

    return act


def never_answers(_: BaseHTTPRequestHandler, receiver: Receiver) -> None:
    """Hold the connection open and say nothing."""
    receiver.ending.wait(60)


def drops(handler: BaseHTTPRequestHandler, _: Receiver) -> None:
    """Close the connection without a word."""
    handler.connection.close()


def speaks(*said: bytes) -> Behaviour:
    """Write these very bytes."""

    def act(handler: BaseHTTPRequestHandler, _: Receiver) -> None:
        for data in said:
            handler.wfile.write(data)

    return act


def endless(head: bytes, piece: bytes) -> Behaviour:
    """Write `head`, and `piece` again and again as fast as the other side reads."""

    def act(handler: BaseHTTPRequestHandler, receiver: Receiver) -> None:
        handler.wfile.write(head)
        while not receiver.ending.is_set():
            handler.wfile.write(piece)

    return act


def drips(head: bytes, piece: bytes) -> Behaviour:
    """Write `head`, and `piece` every DRIP_S, for ever."""

    def act(handler: BaseHTTPRequestHandler, receiver: Receiver) -> None:
        handler.wfile.write(head)
        while not receiver.ending.wait(DRIP_S):
            handler.wfile.write(piece)

    return act


# ---------------------------------------------------------------- on a socket


@contextmanager
def receiver(
    behave: Behaviour | None = None, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """A receiver in threads of this process, with TLS where a context is given."""
    found = Receiver("", behave or answers())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            with found.arrived:
                found.seen.append(Request(self.path, dict(self.headers.items()), body))
                found.arrived.notify_all()
            with contextlib.suppress(OSError):  # the other side has heard enough
                found.behave(self, found)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing on standard error."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a failed handshake is what a test wants
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: found.names.append(name)  # type: ignore[assignment]
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found.url = f"{'https' if tls else 'http'}://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.ending.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


# ---------------------------------------------------------------- a certificate authority


@dataclass(frozen=True)
class Authority:
    """The certificate of a certificate authority, and the context of a server that it vouches for."""

    certificate: Path
    server: ssl.SSLContext


def authority(folder: Path, name: str) -> Authority:
    """A new authority and a certificate of it for the host `name`."""
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "An authority for tests")])
    root = _certificate(root_name, root_name, root_key, root_key, x509.BasicConstraints(ca=True, path_length=0))
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    leaf = _certificate(leaf_name, root_name, leaf_key, root_key, x509.SubjectAlternativeName([x509.DNSName(name)]))
    paths = {"root.pem": root, "leaf.pem": leaf}
    for file, certificate in paths.items():
        (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "leaf.key").write_bytes(leaf_key.private_bytes(serialization.Encoding.PEM, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
    return Authority(folder / "root.pem", context)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    return builder.add_extension(extension, critical=False).sign(issuer_key, hashes.SHA256())


def headers_of(request: Request) -> Mapping[str, str]:
    """The headers of a request by lower-case name."""
    return {name.lower(): value for name, value in request.headers.items()}
