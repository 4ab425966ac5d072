"""One POST to a real receiver: what is sent, what each answer means, and what no receiver can do to a sender."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from shared.addresses import checked_url, is_public
from shared.deliveries import Answer
from shared.errors import Invalid
from shared.models import Attempt
from tests import receivers, servers
from tests.receivers import Receiver, answers, headers_of
from worker import send

NAME = "hooks.example"
HEADERS = {"Content-Type": "application/json", "webhook-id": "evt_1"}

Start = Callable[..., Receiver]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start receivers that end with the test."""
    with ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(receivers.receiver(*given, **options))


class Resolver:
    """Gives one answer after the other, and counts how often it was asked; the last answer stays."""

    def __init__(self, *found: Sequence[str]) -> None:
        self.answers, self.asked = list(found), 0

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def post(url: str, *, timeout_s: float = 20.0, private: bool = True, resolve: send.Resolve = send.resolved) -> Answer:
    return send.post(url, b'{"id":"evt_1"}', HEADERS, timeout_s=timeout_s, private=private, resolve=resolve)


def named(url: str) -> str:
    return url.replace("127.0.0.1", NAME)


def test_what_arrives_is_what_was_sent(start: Start) -> None:
    receiver = start(answers(202, b"thank you"))
    answer = post(receiver.url + "/hook/a;v=1?x=%2F&y=1")
    assert (answer.status, answer.error, answer.response) == (202, None, "thank you")
    (request,) = receiver.seen
    assert (request.path, request.body) == ("/hook/a;v=1?x=%2F&y=1", b'{"id":"evt_1"}')
    assert headers_of(request) == {
        "host": receiver.url.removeprefix("http://"),
        "content-type": "application/json",
        "webhook-id": "evt_1",
        "content-length": "14",
    }


OK, REDIRECT, FAILED = (200, 204, 299), (301, 302, 308), (400, 404, 429, 500, 599)
MEANINGS = [(410, "gone"), *((n, None) for n in OK), *((n, "redirect") for n in REDIRECT)]


@pytest.mark.parametrize(("status", "error"), [*MEANINGS, *((n, "unsuccessful") for n in FAILED)])
def test_what_a_status_means(start: Start, status: int, error: str | None) -> None:
    receiver = start(answers(status, b""))
    answer = post(receiver.url)
    assert (answer.status, answer.error) == (status, error)


def test_no_redirect_is_followed(start: Start) -> None:
    inside = start()
    receiver = start(answers(307, b"", Location=inside.url + "/metadata"))
    assert post(receiver.url).error == "redirect"
    assert (len(receiver.seen), len(inside.seen)) == (1, 0)


def test_no_proxy_of_the_environment_is_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, receiver = start(), start()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert post(receiver.url).error is None
    assert (len(receiver.seen), len(proxy.seen)) == (1, 0)


# ---------------------------------------------------------------- addresses

NOT_PUBLIC = """
    0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 127.9.9.9 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.2.1
    192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    :: ::1 ::7f00:1 ::ffff:10.0.0.1 ::ffff:127.0.0.1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd12::1 ff02::1 ff0e::1
    100::1 2001:db8::1 2001::1 2002:7f00:1::1 2002:a00:1:: 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 5f00::1
"""
PUBLIC = "1.1.1.1 93.184.216.34 100.63.255.255 172.32.0.1 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101"


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_an_address_that_is_not_public_is_never_connected_to(address: str) -> None:
    assert not is_public(address)
    for found in ([address], ["1.1.1.1", address]):
        answer = post(f"https://{NAME}/", private=False, resolve=Resolver(found))
        assert (answer.error, answer.status) == ("address_not_allowed", None)
        assert address not in (answer.detail or "")


@pytest.mark.parametrize("address", PUBLIC.split())
def test_a_public_address_is_one(address: str) -> None:
    assert is_public(address)


def test_the_next_address_is_tried_where_one_refuses(start: Start) -> None:
    receiver = start()
    answer = post(named(receiver.url), resolve=Resolver(["127.0.0.3", "127.0.0.1"]))
    assert answer.error is None
    assert len(receiver.seen) == 1


@pytest.mark.parametrize("failing", [OSError("no such name"), UnicodeError("label too long")])
def test_a_name_without_an_address_is_said(failing: Exception) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise failing

    assert post("https://nowhere.example/", resolve=resolve).error == "name_not_resolved"
    assert post("https://nowhere.example/", resolve=lambda *_: []).error == "name_not_resolved"


def test_the_resolver_of_the_system_is_asked(start: Start) -> None:
    assert "127.0.0.1" in send.resolved("localhost", 80)
    with pytest.raises((OSError, UnicodeError)):
        send.resolved("a..b", 80)


# ---------------------------------------------------------------- TLS


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Trust an authority the way an operator does."""

    def add(certificate: Path) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send.trusted.cache_clear()

    yield add
    send.trusted.cache_clear()


def test_certificate_and_server_name_are_those_of_the_url(
    start: Start, trust: Callable[[Path], None], tmp_path: Path
) -> None:
    authority = receivers.authority(tmp_path, NAME)
    receiver = start(tls=authority.server)
    resolver = Resolver(["127.0.0.1"])
    assert post(named(receiver.url), resolve=resolver).error == "tls_failed"
    trust(authority.certificate)
    assert post(named(receiver.url), resolve=resolver).error is None
    assert receiver.names == [NAME, NAME]
    other = post(receiver.url.replace("127.0.0.1", "other.example"), resolve=resolver)
    assert other.error == "tls_failed"
    assert "other.example" in (other.detail or "")
    assert post(receiver.url).error == "tls_failed"
    assert len(receiver.seen) == 1


def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_the_one(
    start: Start, trust: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: at the second look the name points inside. 127.0.0.2 stands in for the public internet here."""
    monkeypatch.setattr(send, "is_public", lambda address: address == "127.0.0.2")
    authority = receivers.authority(tmp_path, NAME)
    trust(authority.certificate)
    outside = start(host="127.0.0.2", tls=authority.server)
    port = int(outside.url.rpartition(":")[2])
    inside = start(port=port, tls=authority.server)
    resolver = Resolver(["127.0.0.2"], ["127.0.0.1"])
    answer = post(f"https://{NAME}:{port}/", private=False, resolve=resolver)
    assert (answer.error, resolver.asked) == (None, 1)
    assert (len(outside.seen), len(inside.seen)) == (1, 0)
    assert headers_of(outside.seen[0])["host"] == f"{NAME}:{port}"
    again = post(f"https://{NAME}:{port}/", private=False, resolve=resolver)
    assert again.error == "address_not_allowed"
    assert (len(outside.seen), len(inside.seen)) == (1, 0)


def test_nothing_goes_out_unencrypted_once_the_operator_forbids_it(start: Start) -> None:
    """A webhook for http:// may have been made while `HILUM_WEBHOOK_PRIVATE` was on: it is held to today's rule."""
    receiver, resolver = start(), Resolver(["127.0.0.1"])
    answer = post(named(receiver.url), private=False, resolve=resolver)
    assert (answer.error, answer.status, resolver.asked, receiver.seen) == ("not_https", None, 0, [])


def test_a_receiver_without_tls_is_no_https(start: Start) -> None:
    assert post(start().url.replace("http:", "https:")).error == "tls_failed"


# ---------------------------------------------------------------- receivers that mean no good

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = HEAD + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        receivers.never_answers,
        receivers.drips(b"", b"H"),
        receivers.drips(HEAD, b"X: y\r\n"),
        receivers.drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        receivers.drips(UNTIL_CLOSED, b"a"),
        receivers.drips(CHUNKED, b"1\r\na\r\n"),
    ],
    ids=["silence", "status", "headers", "interim", "body", "chunks"],
)
def test_a_receiver_that_takes_its_time_gets_no_more_than_there_is(
    start: Start, behaviour: receivers.Behaviour
) -> None:
    """Each of these goes on for ever, a byte at a time: that the call returns at all is the limit at work."""
    answer = post(start(behaviour).url, timeout_s=0.4)
    assert (answer.error, answer.status, answer.response) == ("timeout", None, None)
    assert answer.duration_ms >= 400


def test_a_handshake_that_never_ends_is_ended(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert post(f"https://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.4).error == "timeout"


def test_a_resolver_that_never_answers_is_left_alone() -> None:
    ending = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        ending.wait(60)
        return ["1.1.1.1"]

    answer = post("https://slow.example/", timeout_s=0.3, resolve=resolve)
    ending.set()
    assert answer.error == "timeout"


@pytest.mark.parametrize(
    "behaviour",
    [
        receivers.endless(UNTIL_CLOSED, b"a" * 65536),
        receivers.endless(CHUNKED, b"10000\r\n" + b"a" * 65536 + b"\r\n"),
        receivers.answers(200, b"a" * 2**20),
    ],
    ids=["until-closed", "chunked", "declared"],
)
def test_no_more_than_the_beginning_of_a_body_is_read(start: Start, behaviour: receivers.Behaviour) -> None:
    answer = post(start(behaviour).url)
    assert (answer.status, answer.error, answer.response) == (200, None, "a" * send.SHOWN)


@pytest.mark.parametrize(
    "behaviour",
    [
        receivers.drops,
        receivers.speaks(b"SSH-2.0-OpenSSH_9.7\r\n"),
        receivers.speaks(HEAD + b"Content-Length: 9\r\n\r\n", b"short"),
        receivers.endless(HEAD, b"X-Header: " + b"a" * 1000 + b"\r\n"),
        receivers.endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 9000 + b"\r\n\r\n"),
    ],
    ids=["drops", "ssh", "too-short", "endless-headers", "endless-hints"],
)
def test_what_is_no_answer_is_a_lost_connection(start: Start, behaviour: receivers.Behaviour) -> None:
    assert post(start(behaviour).url).error == "connection_lost"


def test_a_port_where_nobody_listens_is_said() -> None:
    answer = post(f"http://127.0.0.1:{servers.free_port()}/")
    assert (answer.error, answer.status) == ("connect_failed", None)


def test_the_log_has_room_for_what_is_said() -> None:
    longest = {name: Attempt.__table__.c[name].type.length for name in ("response", "detail")}  # type: ignore[attr-defined]
    assert longest == {"response": send.SHOWN, "detail": send.DETAIL}


def test_what_no_database_keeps_does_not_get_there(start: Start) -> None:
    answer = post(start(answers(500, b"\x00a\xff\xfeb\x00")).url)
    assert answer.response == "a��b"


# ---------------------------------------------------------------- Retry-After


SECONDS = {"120": 120.0, "0": 0.0, " 7 ": 7.0, "Fri, 31 Dec 1999 23:59:59 GMT": 0.0}
NEITHER = ("-5", "soon", "", "1.5", "9" * 40, "²", "Fri, 99 Dec 1999")


@pytest.mark.parametrize(("value", "seconds"), [*SECONDS.items(), *((value, None) for value in NEITHER)])
def test_retry_after_is_a_number_or_a_date(start: Start, value: str, seconds: float | None) -> None:
    answer = post(start(answers(429, b"", Retry_After=value)).url)
    assert (answer.status, answer.retry_after_s) == (429, seconds)


def test_a_date_says_how_long_from_now(start: Start) -> None:
    value = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < (post(start(answers(503, b"", Retry_After=value)).url).retry_after_s or 0) <= 3600


# ---------------------------------------------------------------- URLs


REFUSED = """
    http://x.example/ ftp://x.example/ javascript:alert(1) x.example https:// https://x.example:0/ https://x.example:70000/
    https://user:pw@x.example/ https://user@x.example/ https://:pw@x.example/ https://x.example/#part
    https://127.0.0.1/ https://127.1/ https://0x7f.1/ https://2130706433/ https://%31%32%37.0.0.1/ https://10.0.0.1:8443/
    https://[::1]/ https://[::ffff:127.0.0.1]/ https://[64:ff9b::7f00:1]/ https://[fe80::1%25eth0]/
"""
UNPRINTABLE = ("", "https://x y/", "https://x.example/\n", "https://x.example\\@y.example/")


@pytest.mark.parametrize("url", [*REFUSED.split(), *UNPRINTABLE, "https://x.example/" + "a" * 2048])
def test_a_url_that_nothing_may_be_sent_to_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as error:
        checked_url(url, private=False)
    assert error.value.code in ("invalid_url", "address_not_allowed")


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://hooks.example", "https://hooks.example/"),
        ("HTTPS://Hooks.Example:443/a?b=c", "https://hooks.example/a?b=c"),
        ("https://hooks.example:8443/a;b", "https://hooks.example:8443/a;b"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
        ("https://1.1.1.1/", "https://1.1.1.1/"),
        ("https://[2606:4700::1111]/", "https://[2606:4700::1111]/"),
    ],
)
def test_a_good_url_gets_its_normal_form(url: str, normal: str) -> None:
    assert checked_url(url, private=False) == normal


@pytest.mark.parametrize(
    "url", ["http://localhost:9000/a", "http://127.0.0.1:1/", "https://10.0.0.1/", "http://[::1]/"]
)
def test_an_operator_may_allow_addresses_inside(url: str) -> None:
    assert checked_url(url, private=True) == url


def test_an_address_of_ipv6_keeps_its_brackets(start: Start) -> None:
    receiver = start()
    host = receiver.url.removeprefix("http://").replace("127.0.0.1", "[2606:4700::1111]")
    assert post(f"http://{host}/", resolve=Resolver(["127.0.0.1"])).error is None
    assert headers_of(receiver.seen[0])["host"] == host
