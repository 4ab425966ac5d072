"""What 1,000 readers of the event stream cost one API process, and how soon they are told what was committed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import httpx
import psutil

from shared import outbox, tenants
from shared.db import open_database, transaction
from tests.benchmarks.listeners import Listeners, held
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.server import databases
from tests.benchmarks.stage import Stage, hilum, serving, staged

COUNT = 1000
EVENTS = 20
ROUNDS = 3
PAUSE_S = 0.33  # between two events: no multiple of the tick, so that commits fall anywhere within one
KB = 1024

ABOUT = About(
    name="sse_listeners",
    unit="KB per listener",
    means=f"Resident memory that one API process gains per reader of `GET /v1/events`, with {COUNT} readers of one "
    "tenant on real HTTP connections and PostgreSQL. One query per tick serves all; no thread and no connection to "
    "the database belongs to a reader.",
    baseline="a bare FastAPI application in a uvicorn process of its own, whose route holds as many streams of the "
    "same library and tells them what is posted to it: no key, no filter, no database, nothing to come back to",
)
LATENCY = About(
    name="sse_latency",
    unit="ms",
    means=f"95th percentile, over {EVENTS} events of which each goes to all {COUNT} readers, of the time from the end "
    "of the commit in another process until the event is at a reader. Users should see at most 250 ms, of which the "
    "tick is up to 100.",
    baseline="the same percentile at the bare application, from the moment when the event is posted to it",
    again="make bench B=sse_listeners",
)
ALSO = (LATENCY,)


@dataclass(frozen=True)
class Seen:
    """What one round saw: kilobytes per reader, and in ms how long each event took to each reader."""

    kilobytes: float
    latency_ms: list[float]

    def percentile_ms(self, percent: int) -> float:
        """The latency that so many percent keep."""
        return statistics.quantiles(self.latency_ms, n=100)[percent - 1]


def run() -> list[Result]:
    """Alternate rounds of the bare application and of ours, each in a new process: memory is not given back."""
    seen: dict[str, list[Seen]] = {"bare": [], "ours": []}
    with databases("hilum") as (url,), staged(database_url=url) as stage:

        def kilobytes(name: str, measure: Callable[[Stage], Seen]) -> float:
            seen[name].append(measure(stage))
            return seen[name][-1].kilobytes

        alternate(lambda: kilobytes("bare", _bare), lambda: kilobytes("ours", _ours), rounds=ROUNDS, warm_up=0)
    ours, bare = seen["ours"], seen["bare"]
    memory = compared(ABOUT, [one.kilobytes for one in ours], [one.kilobytes for one in bare])
    latency = compared(LATENCY, [one.percentile_ms(95) for one in ours], [one.percentile_ms(95) for one in bare])
    return [memory, replace(latency, figures=_figures(ours))]


def _bare(stage: Stage) -> Seen:
    command = [sys.executable, "-m", "tests.benchmarks.bare_stream"]
    with serving(stage.settings.home / "bare.log", command) as port:

        def post() -> float:
            began = time.monotonic()
            httpx.post(f"http://127.0.0.1:{port}/say", content=b"x" * 200, trust_env=False)
            return began

        return _seen(_running("tests.benchmarks.bare_stream"), Listeners(port, "/events", {}, COUNT), post)


def _ours(stage: Stage) -> Seen:
    with ExitStack() as held_open:
        database = open_database(stage.settings)
        held_open.callback(database.engine.dispose)
        with transaction(database) as session:
            tenant_id = tenants.default_id(session)
        port = held_open.enter_context(serving(stage.settings.home / "api.log", hilum("api"), stage.settings))

        def commit() -> float:
            with transaction(database) as session:
                outbox.record(session, tenant_id, None, "batch.finished", batch="bat_01JDJ5W1M0QZ8N4T7X2B9C3D6F")
            return time.monotonic()

        asked = Listeners(port, "/v1/events", {"Authorization": f"Bearer {stage.key}"}, COUNT)
        return _seen(_running("api.cli"), asked, commit)


def _seen(process: psutil.Process, readers: Listeners, tell: Callable[[], float]) -> Seen:
    """Open the streams, let things happen, and see what it took."""
    alone = process.memory_info().rss
    with held(readers) as clients:
        told_s = []
        for _ in range(EVENTS):
            told_s.append(tell())
            time.sleep(PAUSE_S)
        arrivals = clients.arrivals_s(EVENTS)
        gained = process.memory_info().rss - alone
    latency_ms = [(at - told) * 1e3 for reader in arrivals for at, told in zip(reader, told_s, strict=True)]
    return Seen(gained / KB / readers.count, latency_ms)


def _running(module: str) -> psutil.Process:
    """The child of this process that runs a module."""
    return next(one for one in psutil.Process().children() if module in one.cmdline())


def _figures(rounds: Sequence[Seen]) -> dict[str, str]:
    taken = {name: [one.percentile_ms(percent) for one in rounds] for name, percent in (("p50", 50), ("p95", 95))}
    taken["max"] = [max(one.latency_ms) for one in rounds]
    return {f"commit to client, {name}": f"{statistics.median(ms):.0f} ms" for name, ms in taken.items()}
