"""How many uploads one API process takes on PostgreSQL, and what busy workers on the same machine change about it."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy import func, select

from shared.db import open_database, reading
from shared.models import Job
from shared.settings import environment
from tests.benchmarks import films, queue
from tests.benchmarks.load import Load, Took, measured, multipart
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.server import databases
from tests.benchmarks.stage import Stage, hilum, running, serving, staged, wait_until
from tests.builders import chest, png
from worker.runtimes import compiled

UPLOADS = 320
ROUNDS = 7
CONCURRENCY = 16
SIZE = (1490, 1285)  # the drawn film of this size is a PNG of 1 MB
NICE = 19

_UPLOADS = (
    f"a 1 MB PNG with {CONCURRENCY} clients at once and one API process, on PostgreSQL whose every commit reaches the "
    "disk, local storage and a real Redis"
)

ABOUT = About(
    name="submit_throughput",
    unit="requests/s",
    means=f"Accepted uploads per second of {_UPLOADS}: content check, sha256, blob flushed to the disk, job committed, "
    "bell rung, 202 sent. No worker runs.",
    baseline="a bare FastAPI application in a uvicorn process of its own, whose route reads the same multipart upload "
    "to its end and stores nothing",
    at_least=0.5,
    missed="on two cores load generator, PostgreSQL and API share the processor, and every promise takes a part "
    "of what the bare route has: the form read, a thread, sha256, the blob flushed to the disk, the commit, the bell",
)
LATENCY = About(
    name="submit_latency",
    unit="ms",
    means=f"99th percentile of the time to accept {_UPLOADS}, while a worker with a child per core, at the lowest "
    "priority (`nice`), works on a queue that never empties.",
    baseline="the same percentile while that worker is stopped (SIGSTOP)",
    at_most=3.0,
    again="make bench B=submit_throughput",
)
ALSO = (LATENCY,)


def run() -> list[Result]:
    """Rounds against the bare application, then rounds beside a worker that is stopped and one that works."""
    data = png(chest(1, SIZE))
    assert 0.9e6 < len(data) < 2**20, len(data)
    with databases("hilum") as (url,), staged(database_url=url) as stage:
        body = stage.settings.home / "body"
        body.write_bytes(multipart(data))
        bare = [sys.executable, "-m", "tests.benchmarks.bare"]
        with serving(stage.settings.home / "api.log", hilum("api"), stage.settings) as port:

            def ours() -> Took:
                return measured(Load(port, "/v1/jobs", stage.key, str(body), UPLOADS, CONCURRENCY))

            with serving(stage.settings.home / "bare.log", bare) as bare_port:
                plain = Load(bare_port, "/upload", stage.key, str(body), UPLOADS, CONCURRENCY)
                throughput = alternate(lambda: _per_s(measured(plain)), lambda: _per_s(ours()), rounds=ROUNDS)
            _check(stage, (ROUNDS + 1) * UPLOADS, len(data))
            with _busy(stage) as (stop, go):
                before = _ended(stage)
                latency = alternate(lambda: _p99_ms(stop, ours), lambda: _p99_ms(go, ours), rounds=ROUNDS)
                assert _ended(stage) > before, "the worker did nothing"
    return [compared(ABOUT, throughput[1], throughput[0]), compared(LATENCY, latency[1], latency[0])]


def _per_s(took: Took) -> float:
    return UPLOADS / took.seconds


def _p99_ms(before: Callable[[], None], upload: Callable[[], Took]) -> float:
    before()
    return statistics.quantiles(upload().each_s, n=100)[98] * 1e3


@contextmanager
def _busy(stage: Stage) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """A niced worker that has more to do than it can, and two functions: let it stop, and let it go on."""
    bundle = films.the_bundle(stage.settings.home / "bundle")
    settings = stage.with_settings(bundle=bundle.root).settings
    compiled.ensure(bundle, settings.cache)
    worker = hilum("worker", "--queues", "analyze", "--concurrency", str(compiled.cores()))
    options = {"env": environment(settings), "preexec_fn": lambda: os.nice(NICE)}
    with running(settings.home / "worker.log", worker, **options) as process:
        wait_until(lambda: _ended(stage) > 0, "the worker is at work", queue.LOADED_S)
        tree = psutil.Process(process.pid)

        def send(number: signal.Signals) -> None:
            for one in (tree, *tree.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):  # each film is decoded in a process of its own
                    one.send_signal(number)

        yield lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT)
        send(signal.SIGCONT)


def _ended(stage: Stage) -> int:
    """How many jobs have ended."""
    database = open_database(stage.settings)
    try:
        with reading(database) as session:
            return session.scalar(select(func.count()).select_from(Job).where(Job.finished_at.is_not(None))) or 0
    finally:
        database.engine.dispose()


def _check(stage: Stage, count: int, size: int) -> None:
    """Every upload is a row and a whole blob: nothing was fast because it was left out."""
    database = open_database(stage.settings)
    with reading(database) as session:
        rows = session.scalar(select(func.count()).select_from(Job))
    database.engine.dispose()
    blobs = [path.stat().st_size for path in Path(stage.settings.home, "blobs").rglob("input")]
    assert (rows, blobs) == (count, [size] * count), (rows, len(blobs), count)
