"""What a durable job costs beside a route that only reads the same upload."""

from __future__ import annotations

import sys
from pathlib import Path

import redis
from sqlalchemy import func, select

from shared.db import open_database, reading
from shared.models import Job
from shared.queue import ANALYZE
from tests.benchmarks.load import Load, measured, multipart
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.stage import Stage, hilum, serving, staged
from tests.builders import chest, png

UPLOADS = 320
ROUNDS = 7
CONCURRENCY = 16
SIZE = (1490, 1285)  # the drawn film of this size is a PNG of 1 MB

ABOUT = About(
    name="accept_cost",
    unit="ms per upload",
    means="Time per accepted upload of a 1 MB PNG with 16 clients at once and one API process: content check, "
    "sha256, blob and job flushed to the disk (SQLite, local storage), bell rung on a real Redis, 202 sent. Jobs "
    "that wait for SQLite at the same moment share one commit and one bell. The clients are threads with raw "
    "keep-alive sockets in a process of their own. No worker runs.",
    baseline="a bare FastAPI application in a uvicorn process of its own, whose route reads the same multipart "
    "upload to its end and stores nothing",
    at_most=3.0,
)


def run() -> Result:
    """Alternate rounds of uploads to the bare application and to ours; both serve all the time."""
    data = png(chest(1, SIZE))
    assert 0.9e6 < len(data) < 2**20, len(data)
    with staged() as stage:
        body = stage.settings.home / "body"
        body.write_bytes(multipart(data))
        logs = stage.settings.home
        bare = [sys.executable, "-m", "tests.benchmarks.bare"]
        with (
            serving(logs / "bare.log", bare) as bare_port,
            serving(logs / "api.log", hilum("api"), stage.settings) as port,
        ):
            baseline, ours = alternate(
                lambda: _round(Load(bare_port, "/upload", stage.key, str(body), UPLOADS, CONCURRENCY)),
                lambda: _round(Load(port, "/v1/jobs", stage.key, str(body), UPLOADS, CONCURRENCY)),
                rounds=ROUNDS,
            )
        _check(stage, (ROUNDS + 1) * UPLOADS, len(data))
    return compared(ABOUT, ours, baseline)


def _round(load: Load) -> float:
    """Milliseconds per upload."""
    return measured(load).seconds / load.count * 1e3


def _check(stage: Stage, count: int, size: int) -> None:
    """Every upload is a row and a whole blob, and every commit rang: nothing was fast because it was left out."""
    database = open_database(stage.settings)
    with reading(database) as session:
        rows = session.scalar(select(func.count()).select_from(Job))
    database.engine.dispose()
    blobs = [path.stat().st_size for path in Path(stage.settings.home, "blobs").rglob("input")]
    with redis.Redis.from_url(stage.settings.broker_url) as client:
        bells = client.llen(ANALYZE)
    assert (rows, blobs) == (count, [size] * count), (rows, len(blobs), count)
    assert count / CONCURRENCY <= bells <= count, (bells, count)
