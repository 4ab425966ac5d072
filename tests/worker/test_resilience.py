"""A worker among failures: a database that refuses it, and a row that lost a worker before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import create_engine, text, update

from shared.db import Database, clock, reading, transaction
from shared.models import Job
from shared.queue import ANALYZE
from shared.schemas import JobView, Status
from tests import builders
from worker import analysis, loop
from worker.lease import Lease
from worker.parts import Parts

Submit = Callable[..., str]
JobOf = Callable[[str], JobView]
Rest = Callable[[], None]

FILM = builders.png(builders.chest(3))
ON_POSTGRES = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@contextmanager
def closed(database: Database) -> Iterator[None]:
    """Within the block the database refuses every connection; those that there were are cut."""
    url = database.engine.url
    admin = create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false"))
        cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(cut, {"name": url.database})
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true"))
    admin.dispose()


@ON_POSTGRES
def test_a_database_that_is_away_puts_a_job_off_and_fails_none(
    parts: Parts, submit: Submit, job_of: JobOf, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(FILM)

    def run(parts: Parts, lease: Lease) -> Rest:
        with closed(database):  # the claim is committed, the row cannot be read
            return analysis.run(parts, lease)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "HANDLERS", {ANALYZE: run})
        loop.drain(parts, ANALYZE)
    assert (job_of(job_id).status, job_of(job_id).attempt) == (Status.QUEUED, 1)
    with transaction(database) as session:
        assert session.get_one(Job, job_id).losses == 0
        session.execute(update(Job).values(ready_at=clock(session)))
    loop.drain(parts, ANALYZE)
    assert job_of(job_id).status is Status.SUCCEEDED


@ON_POSTGRES
def test_a_diagnosis_waits_for_a_database_that_restarts(
    parts: Parts, submit: Submit, job_of: JobOf, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(FILM)

    def run(parts: Parts, lease: Lease) -> Rest:
        rest, away = analysis.run(parts, lease), ExitStack()

        def settled() -> None:
            away.enter_context(closed(database))
            threading.Timer(0.5, away.close).start()
            rest()

        return settled

    monkeypatch.setattr(loop, "HANDLERS", {ANALYZE: run})
    loop.drain(parts, ANALYZE)
    assert (job_of(job_id).status, job_of(job_id).attempt) == (Status.SUCCEEDED, 1)


@pytest.mark.parametrize("losses", [0, 1])
def test_a_row_that_lost_a_worker_shares_a_process_with_no_other(
    parts: Parts, submit: Submit, database: Database, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    before, suspect, after = (submit(FILM) for _ in range(3))
    with transaction(database) as session:
        session.execute(update(Job).where(Job.id == suspect).values(losses=losses))
    seen: list[tuple[str, str]] = []

    def run(parts: Parts, lease: Lease) -> Rest:
        seen.append(("begins", lease.claim.id))
        rest = analysis.run(parts, lease)

        def settled() -> None:
            time.sleep(0.3)  # long enough for the next row to begin, if it may
            rest()
            seen.append(("ended", lease.claim.id))

        return settled

    monkeypatch.setattr(loop, "HANDLERS", {ANALYZE: run})
    loop.drain(parts, ANALYZE)
    alone = [(what, row) for row in (before, suspect, after) for what in ("begins", "ended")]
    assert (seen == alone) is (losses > 0)
    with reading(database) as session:
        assert {session.get_one(Job, row).status for row in (before, suspect, after)} == {Status.SUCCEEDED}
