"""A process that freezes in the middle of a transaction, as PostgreSQL sees it."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from shared import db
from shared.db import open_database, reading, transaction
from shared.models import Counter
from shared.settings import Settings


@pytest.mark.parametrize("database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)
def test_its_locks_are_free_again_after_a_while(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "IDLE_S", 1)
    frozen, other = open_database(settings), open_database(settings)
    with transaction(other) as session:
        session.add(Counter(name="test", value=0))
    with frozen.writes() as session:
        session.execute(update(Counter).where(Counter.name == "test").values(value=1))
        with transaction(other) as patient:  # waits for the lock, and gets it when the server has ended the other
            patient.execute(text("SET LOCAL lock_timeout = '30s'"))
            patient.execute(update(Counter).where(Counter.name == "test").values(value=2))
        with pytest.raises(DBAPIError) as lost:
            session.commit()
        assert db.is_away(lost.value)
        session.rollback()
    with reading(other) as session:
        assert session.scalars(select(Counter.value).where(Counter.name == "test")).one() == 2
    for one in (frozen, other):
        one.engine.dispose()
