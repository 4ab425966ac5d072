"""Writers that wait at the same moment share one commit, and none of them pays for another's error."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from shared import db, tenants
from shared.db import Database, reading, together, transaction
from shared.errors import Unavailable
from shared.models import Tenant
from shared.queue import ring_after_commit
from tests.servers import until

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
    """Call all acts while another thread commits, and let them go when all of them wait for it."""
    with ThreadPoolExecutor(len(acts)) as pool:
        with database.sharing:
            calls = [pool.submit(together, database, act) for act in acts]
            until(lambda: len(database.acts) == len(acts))
        return calls


def test_each_call_gets_its_own_answer_after_the_commit(database: Database) -> None:
    wanted = [f"tenant-{number}" for number in range(8)]
    assert [call.result() for call in at_once(database, [creating(name) for name in wanted])] == wanted
    assert names(database) >= set(wanted)


def test_they_share_one_commit_and_one_bell(database: Database, rung: list[str]) -> None:
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    at_once(database, [creating(f"tenant-{number}") for number in range(8)])
    assert (len(commits), rung) == (1, ["analyze"])


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_an_act_that_may_wait_for_a_row_holds_up_none_that_does_not(database: Database) -> None:
    def waiting(session: Session) -> str:
        return session.scalars(select(Tenant.name).with_for_update()).one()

    with transaction(database) as session:
        name = tenants.create(session, "held").name
    with ThreadPoolExecutor(1) as pool:
        with transaction(database) as session:
            session.scalars(select(Tenant).with_for_update()).one()
            waits = pool.submit(together, database, waiting, waits=True)
            until(lambda: _locked(database) == 1)
            assert together(database, creating("another")) == "another"
            assert not waits.done()
        assert waits.result() == name


def test_who_waits_too_long_for_another_commit_gives_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs in a commit takes one thread, and not all of them."""
    for limit in ("POOL_TIMEOUT_S", "BUSY_TIMEOUT_S"):
        monkeypatch.setattr(db, limit, 0.1)
    with database.sharing, pytest.raises(Unavailable):
        together(database, creating("never"))
    assert together(database, creating("later")) == "later"
    assert "never" not in names(database)


def test_what_may_be_committed_is_not_made_again(database: Database) -> None:
    """The server commits, and its answer is lost: to call the acts again would make everything twice."""
    called: list[str] = []

    def counted(name: str) -> Act:
        def act(session: Session) -> str:
            called.append(name)
            return tenants.create(session, name).name

        return act

    def lose(session: Session) -> None:
        raise ConnectionResetError

    wanted = ["one", "two"]
    event.listen(database.writes, "after_commit", lose)
    try:
        calls = at_once(database, [counted(name) for name in wanted])
    finally:
        event.remove(database.writes, "after_commit", lose)
    assert [type(call.exception()) for call in calls] == [ConnectionResetError] * 2
    assert sorted(called) == wanted
    assert names(database) >= set(wanted)


def test_an_act_that_fails_is_undone_alone(database: Database, rung: list[str]) -> None:
    before, failed, after = at_once(database, [creating("before"), failing, creating("after")])
    with pytest.raises(ValueError, match="of this act alone"):
        failed.result()
    assert (before.result(), after.result()) == ("before", "after")
    assert names(database) & {"before", "undone", "after"} == {"before", "after"}
    assert set(rung) == {"analyze"}


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_a_database_that_is_away_is_asked_once_for_all(database: Database) -> None:
    """One after the other, each would wait for the time limit of a connection."""
    asked: list[object] = []

    def refuse(*connection: object) -> None:
        asked.append(connection)
        raise OperationalError("connect", {}, ConnectionRefusedError())

    database.engine.dispose()
    event.listen(database.engine, "do_connect", refuse)
    calls = at_once(database, [creating(f"tenant-{number}") for number in range(8)])
    assert [type(call.exception()) for call in calls] == [Unavailable] * 8
    assert len(asked) == 1


def _locked(database: Database) -> int:
    """How many sessions of this database wait for a lock."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with reading(database) as session:
        return session.scalars(text(asked)).one()
