"""Writers that wait at the same moment share one commit, and none of them pays for another's error."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from shared import tenants
from shared.db import Database, reading, together
from shared.models import Tenant
from shared.queue import ring_after_commit

Act = Callable[[Session], str]


def names(database: Database) -> set[str]:
    with reading(database) as session:
        return set(session.scalars(select(Tenant.name)))


def creating(name: str) -> Act:
    def act(session: Session) -> str:
        ring_after_commit(session, "analyze")
        return tenants.create(session, name).name

    return act


def failing(session: Session) -> str:
    tenants.create(session, "undone")
    raise ValueError("of this act alone")


def at_once(database: Database, acts: list[Act]) -> list[Future[str]]:
    """Call all acts while another writer has the turn, and let them go when all of them wait for it."""
    with ThreadPoolExecutor(len(acts)) as pool:
        with database.turn:
            calls = [pool.submit(together, database, act) for act in acts]
            deadline = time.monotonic() + 10
            while database.engine.dialect.name == "sqlite" and len(database.acts) < len(acts):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return calls


def test_each_call_gets_its_own_answer_after_the_commit(database: Database) -> None:
    wanted = [f"tenant-{number}" for number in range(8)]
    assert [call.result() for call in at_once(database, [creating(name) for name in wanted])] == wanted
    assert names(database) >= set(wanted)


def test_on_sqlite_they_share_one_commit_and_one_bell(database: Database, rung: list[str]) -> None:
    if database.engine.dialect.name != "sqlite":
        return
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    at_once(database, [creating(f"tenant-{number}") for number in range(8)])
    assert (len(commits), rung) == (1, ["analyze"])


def test_an_act_that_fails_is_undone_alone(database: Database, rung: list[str]) -> None:
    before, failed, after = at_once(database, [creating("before"), failing, creating("after")])
    with pytest.raises(ValueError, match="of this act alone"):
        failed.result()
    assert (before.result(), after.result()) == ("before", "after")
    assert names(database) & {"before", "undone", "after"} == {"before", "after"}
    assert set(rung) == {"analyze"}
