"""A reader of the tenant's event stream, which comes back with `Last-Event-ID` whenever its connection breaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx

from tests.chaos.truth import STREAM, Truth

QUIET_S = 15.0  # a stream that says nothing for so long, not even that it lives, is opened again
PAUSE_S = 0.2


class Stream:
    """`start` before the first upload; `stop` ends it."""

    def __init__(self, url: str, key: str, truth: Truth) -> None:
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        self._truth = truth
        self._stopped = threading.Event()
        self._last = ""
        self.connected = threading.Event()
        self.connections = 0
        self._thread = threading.Thread(target=self._read, name="stream", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        self._client.close()
        self._thread.join(QUIET_S + 5)

    def _read(self) -> None:
        while not self._stopped.is_set():
            try:
                for event_id, data in self._connection():
                    if data:
                        self._truth.event(STREAM, json.loads(data))
                    self._last = event_id
            except (httpx.HTTPError, RuntimeError):
                pass  # a closed client says so with a RuntimeError
            self._stopped.wait(PAUSE_S)

    def _connection(self) -> Iterator[tuple[str, str]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self._last} if self._last else {})
        timeout = httpx.Timeout(5, read=QUIET_S)
        with self._client.stream("GET", "/v1/events", headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                return
            self.connections += 1
            self.connected.set()
            yield from _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(id, data) of each block of a stream, by the rules of HTML's server-sent events.

    One without data is no event, but says where to go on: a stream that has told nothing yet begins with such an id.
    """
    event_id, data = "", []
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            yield event_id, "\n".join(data)
            data = []
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)
