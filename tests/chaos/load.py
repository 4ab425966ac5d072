"""The load: clients that upload films under idempotency keys, and ask again with the same key when they do not know."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx

from tests.builders import chest, png
from tests.chaos.plan import Plan, schedule
from tests.chaos.process import POISON
from tests.chaos.truth import Truth

FILMS, SIZE = 8, (160, 144)
EXPLAINED, CANCELED, REPLAYED, WAITED = 0.15, 0.03, 0.05, 0.03
PRIORITIES = ("routine", "routine", "routine", "urgent", "stat")
MARKING = ("api_restart", "poison", "client_cut")  # kinds of fault that are done to an upload of their own
ASK_AGAIN = (409, 425, 429, 500, 502, 503, 504, 507)
ACCEPTED = (200, 201, 202)
TIMEOUT_S = 15.0
RESERVE, MORE = 20, 2  # one upload in so many is kept for faults that meet nothing; each then lets so many begin
TRIES, LATER_S = 4, 1.0
BOUNDARY = "hilum-chaos"


@dataclass(frozen=True)
class Order:
    """One upload and what its client does with it; everything is drawn from the seed and the number."""

    number: int
    key: str
    film: int
    explain: bool
    priority: str
    cancel: bool
    replay: bool
    wait: bool
    poison: bool = False
    cut: str = ""  # the first try breaks off: `early`, in the middle of the upload, or `late`, before the answer


class Load:
    """The clients of one run; `allow` says how many uploads may have begun."""

    def __init__(self, plan: Plan, url: str, key: str, truth: Truth) -> None:
        self._plan, self._url, self._truth = plan, url, truth
        self._headers = {"Authorization": f"Bearer {key}"}
        self._films = [png(chest(seed, SIZE)) for seed in range(FILMS)]
        self._lock = threading.Condition()
        self._next, self._allowed = 0, 0
        self._kept = sum(kind in MARKING for kind in schedule(plan))  # uploads that faults to come will need
        self._reserve = plan.jobs // RESERVE if schedule(plan) else 0
        self._again: list[tuple[float, Order]] = []
        self._unsure = 0
        self.poisoned: set[int] = set()
        self._marks: deque[dict[str, object]] = deque()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._client, name=f"client-{n}", daemon=True) for n in range(plan.clients)
        ]

    @property
    def usual(self) -> int:
        """How many uploads there are beside those of the reserve."""
        return self._plan.jobs - self._reserve

    def start(self) -> None:
        """Begin to upload what is allowed."""
        for thread in self._threads:
            thread.start()

    def allow(self, count: int) -> None:
        """Let the first `count` uploads begin."""
        with self._lock:
            self._allowed = max(self._allowed, min(count, self._plan.jobs))
            self._lock.notify_all()

    def more(self) -> None:
        """Let a few of the reserve begin: a fault that is made in the middle of the work has found nobody at work."""
        with self._lock:
            self._reserve = max(0, self._reserve - MORE)
            self._lock.notify_all()

    def mark(self, **changed: object) -> None:
        """Let the next upload be another than it was drawn: `poison=True`, or `cut="early"`."""
        with self._lock:
            self._kept -= 1
            self._marks.append(changed)

    def join(self, within_s: float) -> bool:
        """Wait until every upload that was allowed is known to be a job; False when the time ran out."""
        with self._lock:
            self._ended, self._kept, self._reserve = True, 0, 0
            self._lock.notify_all()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def interrupted(self, arrived: Callable[[int], bool], meanwhile: Callable[[], object]) -> bool:
        """Send half of an upload, call `meanwhile`, go on; a client asks again later.

        False when none is left, or when the service did not take the connection (`arrived`, by the client's port).
        """
        order, met = self._kept_back(), False
        if order is None:
            return False
        with contextlib.suppress(OSError), _connected(self._url) as connection:
            request = self._raw(order)
            connection.sendall(request[: len(request) // 2])
            met = arrived(connection.getsockname()[1])
            meanwhile()
            connection.sendall(request[len(request) // 2 :])
        self._later(replace(order, cut=""))
        return met

    def _client(self) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=TIMEOUT_S, trust_env=False) as client:
            while (order := self._take()) is not None:
                self._upload(client, order)

    def _take(self) -> Order | None:
        """The next upload; None when there is none and it is over."""
        with self._lock:
            while True:
                due = [one for one in self._again if one[0] <= time.monotonic()]
                if due:
                    self._again.remove(due[0])
                    return due[0][1]
                allowed = min(self._allowed, self._plan.jobs - self._kept - self._reserve)
                if self._next < allowed and self._truth.open() < self._plan.window:
                    return self._begun(self._marks.popleft() if self._marks else {})
                if self._ended and self._next >= self._allowed and not self._unsure:
                    return None
                self._lock.wait(0.1)

    def _kept_back(self) -> Order | None:
        """An upload that the clients were not allowed to begin; None when there is none left."""
        with self._lock:
            if self._next >= self._plan.jobs:
                return None
            self._kept -= 1
            return self._begun({})

    def _begun(self, changed: dict[str, object]) -> Order:
        self._next, self._unsure = self._next + 1, self._unsure + 1
        order = replace(drawn(self._plan, self._next - 1), **changed)  # type: ignore[arg-type]
        if order.poison:
            order = replace(order, cancel=False)  # it must come to be analysed
        self.poisoned |= {order.number} if order.poison else set()
        return order

    def _later(self, order: Order) -> None:
        """Let any client ask again in a while: nothing is known of this upload yet."""
        with self._lock:
            self._again.append((time.monotonic() + LATER_S, order))

    def _upload(self, client: httpx.Client, order: Order) -> None:
        """Ask, again and again and never with another key, until there is an answer that leaves no doubt."""
        draw = random.Random(f"{self._plan.seed}-{order.number}-pauses")
        if order.cut:
            self._cut(order)
        for _ in range(TRIES):
            with contextlib.suppress(httpx.HTTPError):
                answer = self._asked(client, order)
                if answer.status_code not in ASK_AGAIN:
                    return self._known(client, order, answer)
            time.sleep(draw.uniform(0.05, 0.5))
        self._later(replace(order, cut=""))

    def _known(self, client: httpx.Client, order: Order, answer: httpx.Response) -> None:
        """The upload is a job now, or it was refused."""
        if answer.status_code in ACCEPTED:
            job_id = answer.json()["id"]
            self._truth.accept(order.number, job_id)
            if order.replay:
                self._replayed(client, order)
            if order.cancel:
                with contextlib.suppress(httpx.HTTPError):
                    client.post(f"/v1/jobs/{job_id}/cancel")
        else:
            self._truth.refuse(order.number, f"{answer.status_code} {answer.text[:200]}")
        with self._lock:
            self._unsure -= 1
            self._lock.notify_all()

    def _replayed(self, client: httpx.Client, order: Order) -> None:
        """Ask once more although the answer is known: it must be the same job."""
        with contextlib.suppress(httpx.HTTPError):
            answer = self._asked(client, order)
            if answer.status_code in ACCEPTED:
                self._truth.accept(order.number, answer.json()["id"])

    def _asked(self, client: httpx.Client, order: Order) -> httpx.Response:
        headers = {"Idempotency-Key": order.key} | ({"Prefer": "wait=2"} if order.wait else {})
        return client.post("/v1/jobs", headers=headers, files={"file": self._film(order)}, data=_fields(order))

    def _cut(self, order: Order) -> None:
        """Break off in the middle of the upload, or after it without waiting for the answer."""
        request = self._raw(order)
        sent = request if order.cut == "late" else request[: len(request) // 2]
        for _ in range(TRIES):  # while the API is away there is nothing to break off
            with contextlib.suppress(OSError), _connected(self._url) as connection:
                return connection.sendall(sent)
            time.sleep(LATER_S)

    def _raw(self, order: Order) -> bytes:
        """The whole request as bytes, for a client that breaks off where it wants."""
        fields = b"".join(_part(f'name="{name}"', value.encode()) for name, value in _fields(order).items())
        file = _part('name="file"; filename="film.png"', self._film(order))
        body = fields + file + f"--{BOUNDARY}--\r\n".encode()
        head = [
            "POST /v1/jobs HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: {self._headers['Authorization']}",
            f"Idempotency-Key: {order.key}",
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}",
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*head, "", ""]).encode() + body

    def _film(self, order: Order) -> bytes:
        film = self._films[order.film]
        return poisoned(film) if order.poison else film


def drawn(plan: Plan, number: int) -> Order:
    """The upload `number` of a run."""
    draw = random.Random(f"{plan.seed}-{number}")
    return Order(
        number=number,
        key=f"chaos-{plan.seed}-{number}",
        film=draw.randrange(FILMS),
        explain=draw.random() < EXPLAINED,
        priority=draw.choice(PRIORITIES),
        cancel=draw.random() < CANCELED,
        replay=draw.random() < REPLAYED,
        wait=draw.random() < WAITED,
    )


def poisoned(film: bytes) -> bytes:
    """The same picture with a mark in a text chunk, which the harness's workers die of."""
    name, data = b"tEXt", b"Comment\0" + POISON
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    end = film.rindex(b"IEND") - 4
    return film[:end] + chunk + film[end:]


def _fields(order: Order) -> dict[str, str]:
    fields = {"priority": order.priority, "external_id": order.key}
    return fields | ({"explain": "gradcam"} if order.explain else {})


def _part(disposition: str, data: bytes) -> bytes:
    return f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"


def _connected(url: str) -> socket.socket:
    where = urlsplit(url)
    return socket.create_connection((where.hostname or "", where.port or 80), timeout=TIMEOUT_S)
