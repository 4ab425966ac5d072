"""The sweeper on SQLite and on PostgreSQL: what it frees, when it rings, and that one of several works."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from api import sweep
from api.sweep import Sweeper
from shared import destinations, jobs, ledger, locks, workers
from shared.db import Database, clock, reading, transaction
from shared.deeds import HILUM
from shared.models import Delivery, Job, Lock
from shared.settings import Settings, environment
from tests.crowds import pile_up

Submit = Callable[[], str]


@pytest.fixture
def submit(database: Database, settings: Settings, tenant_id: str, rung: list[str]) -> Submit:
    """Submit a job without anybody hearing its bell; its id."""

    def once() -> str:
        job_id = jobs.new_id()
        with transaction(database) as session:
            details = {
                "blob_key": f"{tenant_id}/{job_id}/input",
                "media_type": "image/png",
                "size": 1,
                "sha256": "0" * 64,
            }
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, **details)
        rung.clear()
        return job_id

    return once


def present(database: Database, *names: str, queues: tuple[str, ...] = ("analyze",)) -> None:
    with transaction(database) as session:
        for name in names:
            workers.beat(session, name, queues=list(queues))


def claim(database: Database) -> str:
    with transaction(database) as session:
        return ledger.claim_next(session, Job, 1, lease_s=60)[0].id


def expire(database: Database) -> None:
    with transaction(database) as session:
        session.execute(update(Job).values(lease_until=clock(session) - timedelta(seconds=1)))


def status(database: Database, job_id: str) -> str:
    with reading(database) as session:
        return session.get_one(Job, job_id).status


def test_a_job_whose_worker_died_waits_again_and_is_rung_for(
    database: Database, settings: Settings, submit: Submit, rung: list[str]
) -> None:
    job_id = submit()
    claim(database)
    expire(database)
    assert sweep.once(database, settings, Sweeper())
    assert status(database, job_id) == "queued"
    assert rung == ["analyze"]


def test_it_rings_for_idle_workers_and_not_for_rows(
    database: Database, settings: Settings, submit: Submit, rung: list[str]
) -> None:
    for _ in range(20):
        submit()
    present(database, "a", "b", "c")
    present(database, "d", queues=("explain",))
    claim(database)
    sweep.once(database, settings, Sweeper())
    assert rung == ["analyze"] * 2


def test_it_rings_for_nobody_when_all_are_busy_or_away(
    database: Database, settings: Settings, submit: Submit, rung: list[str]
) -> None:
    submit(), submit()
    sweep.once(database, settings, Sweeper())
    present(database, "a")
    claim(database)
    sweep.once(database, settings, Sweeper())
    assert rung == []


def test_it_rings_ever_more_slowly_for_a_row_that_stays(
    database: Database, settings: Settings, submit: Submit, rung: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    first, sweeper = submit(), Sweeper()
    present(database, "a")
    rung_at = []
    for second in range(70):
        now = 1000.0 + second
        sweep.once(database, settings, sweeper)
        rung_at += [second] * len(rung)
        rung.clear()
    assert rung_at == [0, 1, 3, 7, 15, 31, 61]
    assert claim(database) == first
    submit()
    present(database, "b")
    sweep.once(database, settings, sweeper)
    assert rung == ["analyze"]


def test_of_two_sweepers_one_works_and_the_other_takes_over(
    database: Database, settings: Settings, submit: Submit
) -> None:
    one, other = Sweeper(), Sweeper()
    assert sweep.once(database, settings, one)
    assert not sweep.once(database, settings, other)
    assert sweep.once(database, settings, one)
    with transaction(database) as session:
        session.execute(update(Lock).values(until=clock(session) - timedelta(seconds=1)))
    assert sweep.once(database, settings, other)
    assert not sweep.once(database, settings, one)


def test_rows_that_cannot_be_freed_keep_no_others_from_it(
    database: Database, settings: Settings, submit: Submit, rung: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(sweep, "EXPIRE", {"first": broken, **sweep.EXPIRE})
    job_id = submit()
    claim(database)
    expire(database)
    with pytest.raises(ExceptionGroup, match="not freed"):
        sweep.once(database, settings, Sweeper())
    assert (status(database, job_id), rung) == ("queued", ["analyze"])


def test_many_at_once_never_hold_the_lease_together(database: Database) -> None:
    held, start = [], threading.Barrier(4)

    def take(name: str) -> None:
        start.wait()
        with transaction(database) as session:
            held.append(locks.take(session, "race", name, lease_s=60))

    threads = [threading.Thread(target=take, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(held) == [False, False, False, True]


def test_a_database_that_goes_away_does_not_end_it(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, stopping = [], threading.Event()
    once = sweep.once

    def counted(*arguments: object) -> bool:
        rounds.append(1)
        if len(rounds) > 2:
            stopping.set()
        return once(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep, "once", counted)
    broken = Database(database.engine, database.reads, database.reads)
    with database.engine.begin() as connection:
        connection.execute(update(Lock).values(holder="x"))
        connection.exec_driver_sql("DROP TABLE locks")
    sweep.sweep(broken, settings.model_copy(update={"sweep_every_s": 0.01}), stopping)
    assert len(rounds) == 3


def test_the_command_cancels_the_rest_of_a_pile(database: Database, settings: Settings, tenant_id: str) -> None:
    """Whoever disables a webhook does not wait for all that had piled up for it."""
    with transaction(database) as session:
        hook = destinations.create(session, tenant_id, url="https://x.example/", events=[], description="", by=HILUM)
        pile_up(session, hook.id, destinations.CANCELED_AT_ONCE + 1)
        destinations.disable(session, hook, destinations.OWNER)
    waits = select(func.count()).select_from(Delivery).where(Delivery.status == "queued")
    with reading(database) as session:
        assert session.scalars(waits).one() == 1
    command = [sys.executable, "-m", "api.cli", "sweep", "--once"]
    subprocess.run(command, env=environment(settings), check=True, timeout=60)
    with reading(database) as session:
        assert session.scalars(waits).one() == 0


def test_the_command_does_one_round(database: Database, settings: Settings, submit: Submit) -> None:
    job_id = submit()
    claim(database)
    expire(database)
    command = [sys.executable, "-m", "api.cli", "sweep", "--once"]
    subprocess.run(command, env=environment(settings), check=True, timeout=60)
    assert status(database, job_id) == "queued"
