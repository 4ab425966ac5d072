"""Purging by hand and by the sweeper: what the command says, and what is gone from database and storage."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from api import sweep
from shared import ids, jobs, ledger, rehearsal, tenants
from shared.db import Database, clock, reading, transaction
from shared.models import TEST, Deed, Event, Job
from shared.settings import Settings, environment
from shared.storage import open_storage
from tests.operator.conftest import Typed
from tests.servers import until

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
Make = Callable[..., str]


@pytest.fixture
def make(database: Database, settings: Settings, tenant_id: str) -> Make:
    """A canceled job that is some days old, with its film in the storage; its id."""
    storage = open_storage(settings)

    def one(days: float = 0, *, ends: bool = True, mode: str = "live") -> str:
        with transaction(database) as session:
            past = clock(session) - timedelta(days=days)
            job_id = f"{ids.earliest('job', past)[:14]}{jobs.new_id()[14:]}"
            key = f"{tenant_id}/{job_id}/input"
            details = {"blob_key": key, "media_type": "image/png", "size": 1, "sha256": "0" * 64, "mode": mode}
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, **details)
            if ends:
                jobs.cancel(session, tenant_id, job_id)
                session.execute(update(Job).where(Job.id == job_id).values(created_at=past, finished_at=past))
        storage.put(key, b"x", "image/png")
        return job_id

    return one


def left(database: Database) -> set[str]:
    with reading(database) as session:
        return set(session.scalars(select(Job.id)))


@sqlite
def test_the_command_purges_what_it_is_told_to(
    database: Database, settings: Settings, make: Make, typed: Typed
) -> None:
    old, young, open_one = make(40), make(5), make(ends=False)
    assert "kept for ever" in typed("purge", "--tenant", "hospital", code=1)
    assert "no tenant" in typed("purge", "--tenant", "none", "--all", code=1)
    assert "not both" in typed("purge", "--tenant", "hospital", "--all", "--older-than-days", "3", code=2)
    assert "--tenant" in typed("purge", "--all", code=2)
    assert left(database) == {old, young, open_one}
    typed("tenant", "set", "hospital", "--retention-days", "30")
    assert typed("purge", "--tenant", "hospital") == "1 jobs and 1 files purged\n"
    assert left(database) == {young, open_one}
    assert typed("purge", "--tenant", "hospital", "--older-than-days", "6") == "0 jobs and 0 files purged\n"
    assert typed("purge", "--tenant", "hospital", "--all") == "1 jobs and 1 files purged\n"
    assert left(database) == {open_one}
    assert [path.parent.name for path in settings.home.rglob("input")] == [open_one]
    with reading(database) as session:
        purged = session.scalars(
            select(Deed.subject).where(Deed.action == "job.purged", Deed.actor.like("cli:%"))
        ).all()
        assert set(purged) == {old, young}
        assert session.scalars(select(func.count()).select_from(Event)).one() == 0


def test_the_sweeper_purges_and_plays(database: Database, settings: Settings, make: Make, tenant_id: str) -> None:
    with transaction(database) as session:
        tenants.configure(session, tenants.named(session, "hospital"), {"retention_days": 7})
    old, young, played = make(8), make(6), make(ends=False, mode=TEST)
    stopping = threading.Event()
    quick = settings.model_copy(update={"sweep_every_s": 0.05})
    thread = threading.Thread(target=sweep.sweep, args=(database, quick, stopping))
    thread.start()
    try:
        until(lambda: old not in left(database), what="the purge")

        def ended() -> bool:
            with reading(database) as session:
                return session.get_one(Job, played).status == "succeeded"

        until(ended, what="the rehearsal")
    finally:
        stopping.set()
        thread.join(30)
    assert left(database) == {young, played}
    with reading(database) as session:
        assert session.scalars(select(Deed.actor).where(Deed.action == "job.purged")).all() == ["hilum"]


def test_a_store_that_is_slow_does_not_hold_up_the_sweeper(
    database: Database, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, released = threading.Event(), threading.Event()

    def slow(*_: object) -> int:
        stuck.set()
        released.wait(60)
        return 0

    monkeypatch.setattr(rehearsal, "play", slow)
    lost = make(ends=False)
    stopping = threading.Event()
    quick = settings.model_copy(update={"sweep_every_s": 0.05})
    thread = threading.Thread(target=sweep.sweep, args=(database, quick, stopping))
    thread.start()
    try:
        assert stuck.wait(30)
        with transaction(database) as session:
            ledger.claim_next(session, Job, 1, lease_s=0.001)

        def freed() -> bool:
            with reading(database) as session:
                return session.get_one(Job, lost).losses == 1

        until(freed, what="the row of a dead worker")
    finally:
        released.set()
        stopping.set()
        thread.join(30)


@sqlite
def test_one_round_by_hand_does_it_too(database: Database, settings: Settings, make: Make) -> None:
    old, young = make(8), make(6)
    configured = Settings(**{**settings.model_dump(exclude_unset=True), "retention_days": 7})
    command = [sys.executable, "-m", "api.cli", "sweep", "--once"]
    subprocess.run(command, env=environment(configured), check=True, timeout=250)
    assert left(database) == {young}
    assert old not in left(database)
