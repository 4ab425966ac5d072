"""A prefilled queue, and what its rows say when the worker is through."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psutil
from sqlalchemy import func, select

from shared import jobs, tenants, workers
from shared.db import Database, open_database, reading, transaction
from shared.models import Job
from shared.queue import ringer
from shared.schemas import TERMINAL
from shared.settings import Settings, environment
from shared.storage import open_storage
from tests.benchmarks.stage import Stage, hilum, running, wait_until

LOADED_S = 300.0
WORK_S = 600.0


@dataclass(frozen=True)
class Done:
    """What became of the rows of one filling: from the first claim to the last end, and how many ended how."""

    seconds: float
    first_end: datetime
    ends: Counter[str]


@contextmanager
def opened(settings: Settings) -> Iterator[Database]:
    """The database of a stage, whose bells ring at its broker."""
    database = open_database(settings, ring=ringer(settings))
    try:
        yield database
    finally:
        database.engine.dispose()


@contextmanager
def working(stage: Stage, *, loaded: bool = True) -> Iterator[psutil.Process]:
    """A `hilum worker` of its own; with `loaded` the block begins when its networks are in memory."""
    settings = stage.settings
    with (
        running(settings.home / "worker.log", hilum("worker"), env=environment(settings)) as process,
        opened(settings) as database,
    ):
        if loaded:
            wait_until(lambda: _is_loaded(database), "the worker has loaded its networks", LOADED_S)
        yield psutil.Process(process.pid)


def fill(database: Database, settings: Settings, films: Sequence[bytes]) -> list[str]:
    """One queued job per film, all visible at the same moment and announced by one bell; their ids."""
    storage, made = open_storage(settings), []
    with reading(database) as session:
        tenant_id = tenants.default_id(session)
    for data in films:
        job_id = jobs.new_id()
        storage.put(f"{tenant_id}/{job_id}/input", data, "application/octet-stream")
        made.append((job_id, data))
    with transaction(database) as session:
        for job_id, data in made:
            jobs.submit(
                session,
                settings,
                tenant_id=tenant_id,
                job_id=job_id,
                blob_key=f"{tenant_id}/{job_id}/input",
                media_type="application/octet-stream",
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
    return [job_id for job_id, _ in made]


def done(database: Database, job_ids: Sequence[str]) -> Done:
    """Wait for the end of every job and say when it was; RuntimeError when one failed."""
    wait_until(lambda: _count_open(database, job_ids) == 0, "every job has ended", WORK_S)
    with reading(database) as session:
        rows = session.execute(select(Job.status, Job.started_at, Job.finished_at).where(Job.id.in_(job_ids))).all()
    ends = Counter(row.status for row in rows)
    if set(ends) - {"succeeded", "rejected"}:
        raise RuntimeError(f"jobs ended otherwise: {dict(ends)}")
    seconds = max(row.finished_at for row in rows) - min(row.started_at for row in rows)
    return Done(seconds.total_seconds(), min(row.finished_at for row in rows), ends)


def _count_open(database: Database, job_ids: Sequence[str]) -> int:
    ended = [status.value for status in TERMINAL]
    with reading(database) as session:
        found = select(func.count()).select_from(Job).where(Job.id.in_(job_ids), Job.status.not_in(ended))
        return session.scalar(found) or 0


def _is_loaded(database: Database) -> bool:
    with reading(database) as session:
        return any(worker.runtime for worker in workers.alive(session, LOADED_S))
