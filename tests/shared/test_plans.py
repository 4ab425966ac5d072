"""Claiming and sweeping read only the rows they take, however many rows there are: through the partial indexes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import insert

from shared import ledger
from shared.db import reading, transaction
from shared.models import Job

NOW = datetime.now(UTC)
MANY = 3000


@pytest.fixture
def crowded(database, tenant_id):
    """Many rows that ended, and a few that wait or run."""
    common = {"tenant_id": tenant_id, "priority": "routine", "free": {}, "media_type": "image/png", "size": 1}
    rows = [
        {
            **common,
            "id": f"job_{i:026d}",
            "status": "queued" if i % 100 == 0 else "running" if i % 100 == 1 else "succeeded",
            "due_at": NOW,
            "ready_at": NOW,
            "lease_until": NOW,
            "created_at": NOW,
            "blob_key": "b",
            "sha256": "0" * 64,
        }
        for i in range(MANY)
    ]
    with transaction(database) as session:
        session.execute(insert(Job), rows)
        session.connection().exec_driver_sql("ANALYZE")
    return database


def _plan(database, statement) -> str:
    name = database.engine.dialect.name
    compiled = statement.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN " if name == "sqlite" else "EXPLAIN "
    with reading(database) as session:
        rows = session.connection().exec_driver_sql(explain + str(compiled).replace("%", "%%"))
        return "\n".join(str(tuple(row)) for row in rows)


def test_claiming_reads_the_index_of_what_waits(crowded):
    claiming = ledger._waiting(Job, NOW).limit(1)
    assert "ix_jobs_waiting" in _plan(crowded, claiming)
    with transaction(crowded) as session:
        session.connection().exec_driver_sql("DROP INDEX ix_jobs_waiting")
    crowded.engine.dispose()  # an open connection would plan with the schema it remembers
    assert "ix_jobs_waiting" not in _plan(crowded, claiming)


def test_sweeping_reads_the_index_of_what_is_held(crowded):
    with reading(crowded) as session:
        sweeping = ledger._overdue(session, Job)
    assert "ix_jobs_held" in _plan(crowded, sweeping)
