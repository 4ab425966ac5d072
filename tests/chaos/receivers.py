"""Receivers of webhooks with logs of their own, which time out, answer 500 and drop connections when they are told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from tests.chaos.truth import Truth


class Receiver:
    """One endpoint: `misbehave` opens a bad spell, `missed` counts what it did not take."""

    def __init__(self, name: str, truth: Truth, *, hang_s: float) -> None:
        self.name, self.url, self.secret = name, "", ""
        self.forged = 0
        self._truth, self._hang_s = truth, hang_s
        self._spell, self._until, self._hits = "", 0.0, 0
        self._ending = threading.Event()

    def misbehave(self, spell: str, seconds: float) -> None:
        """Answer with `timeout`, `error` or `drop` for a while."""
        self._hits, self._spell, self._until = 0, spell, time.monotonic() + seconds

    @property
    def hits(self) -> int:
        """How many requests the last bad spell has met."""
        return self._hits

    def take(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Behave, for once; what is answered with 2xx is in the log before the answer leaves."""
        if time.monotonic() < self._until:
            self._hits += 1
            return self._refuse(handler, self._spell)
        try:
            event = Webhook(self.secret).verify(body, {k.lower(): v for k, v in handler.headers.items()})
        except WebhookVerificationError:
            self.forged += 1
            return _answer(handler, 400)
        self._truth.event(self.name, event if isinstance(event, dict) else json.loads(body))
        return _answer(handler, 200)

    def _refuse(self, handler: BaseHTTPRequestHandler, spell: str) -> None:
        if spell == "timeout":
            self._ending.wait(self._hang_s)
        elif spell == "error":
            _answer(handler, 500)
        # `drop`: the connection is closed without a word

    def end(self) -> None:
        """Let go of every request that hangs."""
        self._ending.set()


@contextmanager
def receiving(name: str, truth: Truth, *, hang_s: float) -> Iterator[Receiver]:
    """A receiver in threads of this process; give it the `secret` that Hilum named before the first event."""
    found = Receiver(name, truth, hang_s=hang_s)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            length = int(self.headers.get("Content-Length", "0"))
            body = self.rfile.read(length)
            if len(body) == length:  # or else its sender was killed in the middle of it
                with contextlib.suppress(OSError):
                    found.take(self, body)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    found.url = f"http://127.0.0.1:{server.server_port}/{name}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.end()
        server.shutdown()
        server.server_close()
        thread.join(10)


def _answer(handler: BaseHTTPRequestHandler, status: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
