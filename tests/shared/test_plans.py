"""Claiming, sweeping and listing read only the rows they take, however many rows there are: through their indexes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Select, insert, select, update
from sqlalchemy.event import listen

from shared import deeds, deliveries, destinations, ids, ledger, purge, rehearsal, tenants, views, webhook_views
from shared.db import Database, reading, transaction
from shared.deeds import HILUM
from shared.events import Wanted, newest, page
from shared.models import TEST, Batch, Deed, Delivery, Event, Explanation, Job
from shared.schemas import Status
from tests.crowds import pile_up

NOW = datetime.now(UTC)
MANY = 3000


@pytest.fixture
def crowded(database: Database, tenant_id: str) -> Database:
    """Many rows that ended, a minute apart, and a few that wait or run; of every filter something is rare."""
    with transaction(database) as session:
        batch = {"tenant_id": tenant_id, "free": {}, "total": 1, "open": 1, "created_at": NOW}
        session.execute(insert(Batch), [{**batch, "id": "bat_1"}])
        session.execute(insert(Job), [_row(i, tenant_id) for i in range(MANY)])
        session.connection().exec_driver_sql("ANALYZE")
    return database


def _row(i: int, tenant_id: str) -> dict[str, Any]:
    made = NOW - timedelta(minutes=MANY - i)
    return {
        "id": f"{ids.earliest('job', made)[:-4]}{i:04d}",
        "tenant_id": tenant_id,
        "status": {0: "queued", 1: "running", 2: "failed"}.get(i % 100, "succeeded"),
        "mode": "test" if i % 500 == 7 else "live",
        "priority": "stat" if i % 200 == 5 else "routine",
        "external_id": f"study-{i}",
        "batch_id": "bat_1" if i % 300 == 9 else None,
        "top_class": ("covid19" if i % 400 == 11 else "normal") if i % 100 > 1 else None,
        "due_at": NOW,
        "ready_at": NOW,
        "lease_until": NOW,
        "created_at": made,
        "free": {},
        "media_type": "image/png",
        "size": 1,
        "blob_key": "b",
        "sha256": "0" * 64,
    }


def _plan(database: Database, statement: Any) -> str:
    name = database.engine.dialect.name
    compiled = statement.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN " if name == "sqlite" else "EXPLAIN "
    with reading(database) as session:
        rows = session.connection().exec_driver_sql(explain + str(compiled).replace("%", "%%"))
        return "\n".join(str(tuple(row)) for row in rows)


def _drop(database: Database, index: str) -> None:
    with transaction(database) as session:
        session.connection().exec_driver_sql(f"DROP INDEX {index}")
    database.engine.dispose()  # an open connection would plan with the schema it remembers


def test_claiming_reads_the_index_of_what_waits(crowded):
    claiming = ledger._waiting(Job, NOW).limit(1)
    assert "ix_jobs_waiting" in _plan(crowded, claiming)
    _drop(crowded, "ix_jobs_waiting")
    assert "ix_jobs_waiting" not in _plan(crowded, claiming)


def test_sweeping_reads_the_index_of_what_is_held(crowded):
    with reading(crowded) as session:
        sweeping = ledger._overdue(session, Job)
    assert "ix_jobs_held" in _plan(crowded, sweeping)


LISTED: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({}, "ix_jobs_tenant_id_id"),
    "status": ({"status": "failed"}, "ix_jobs_tenant_id_status_id"),
    "top_class": ({"top_class": "covid19"}, "ix_jobs_tenant_id_top_class_id"),
    "priority": ({"priority": "stat"}, "ix_jobs_tenant_id_priority_id"),
    "external_id": ({"external_id": "study-17"}, "ix_jobs_tenant_id_external_id_id"),
    "batch": ({"batch": "bat_1"}, "ix_jobs_batch_id_id"),
    "mode": ({"mode": "test"}, "ix_jobs_tenant_id_id_test"),
}
READS_TOO_MUCH = ("Sort", "TEMP B-TREE", "Seq Scan", "SCAN")


def test_listing_walks_the_index_of_its_filter(crowded, tenant_id):
    for name, (filters, index) in LISTED.items():
        plan = _plan(crowded, views.listed(tenant_id, **filters).limit(51))
        assert index in plan, f"{name}: {plan}"
        assert not any(word in plan for word in READS_TOO_MUCH), f"{name}: {plan}"


def test_a_bound_in_time_is_a_bound_of_the_index(crowded, tenant_id):
    middle = NOW - timedelta(minutes=MANY // 2)
    bounds = {"created_after": middle - views.APART, "created_before": middle + views.APART}
    for bound, shifted in bounds.items():
        plan = _plan(crowded, views.listed(tenant_id, **{bound: middle}).limit(51))
        (searched,) = [line for line in plan.splitlines() if "Index Cond:" in line or "SEARCH" in line]
        # SQLite shows the range and not its values.
        assert ids.earliest("job", shifted) in searched or "(tenant_id,id)>(?,?)" in searched, plan


def test_a_tenant_that_has_been_away_is_not_looked_for_among_the_others(crowded, tenant_id):
    """Its rows are older than all of theirs: the order of the primary key would go through theirs first."""
    with transaction(crowded) as session:
        other = tenants.create(session, "busy").id
        session.execute(insert(Job), [_row(MANY + i, other) | {"batch_id": None} for i in range(MANY)])
        common = {"payload": {}, "type": "job.failed", "created_at": NOW}
        owners = [tenant_id] * MANY + [other] * MANY
        told = [{**common, "id": f"evt_{seq}", "tenant_id": of, "seq": seq} for seq, of in enumerate(owners)]
        session.execute(insert(Event), told)
        session.connection().exec_driver_sql("ANALYZE")
    assert "ix_jobs_tenant_id_id" in _plan(crowded, views.listed(tenant_id).limit(51))
    asked = []
    listen(crowded.engine, "before_execute", lambda _, statement, *__: asked.append(statement))
    with reading(crowded) as session:
        assert newest(session, tenant_id) == (f"evt_{MANY - 1}", MANY - 1)
        assert len(page(session, Wanted(tenant_id), MANY - 3)) == 2
    plans = [_plan(crowded, statement) for statement in asked]
    assert len(plans) == 2
    assert all("ix_events_tenant_id_seq" in plan for plan in plans), plans


def test_the_audit_log_of_a_tenant_that_has_been_away_is_a_range_of_its_index(crowded, tenant_id):
    with transaction(crowded) as session:
        row = {"at": NOW, "actor": "key_1", "action": "job.submitted", "detail": {}}
        owners = [tenant_id] * MANY + ["another"] * MANY
        session.execute(insert(Deed), [{**row, "id": f"ded_{n:05d}", "tenant_id": of} for n, of in enumerate(owners)])
        session.connection().exec_driver_sql("ANALYZE")
    asked = []
    listen(crowded.engine, "before_execute", lambda _, statement, *__: asked.append(statement))
    with reading(crowded) as session:
        assert len(deeds.page(session, tenant_id, limit=50).deeds) == 50
        assert sum(1 for _ in deeds.export(session, tenant_id=tenant_id)) >= MANY
    plans = [_plan(crowded, statement) for statement in asked]
    assert plans
    assert all("ix_deeds_tenant_id_id" in plan for plan in plans), plans


def test_the_deliveries_of_a_status_are_a_range_of_an_index(crowded, tenant_id):
    """A page of what failed, and what is sent again: one webhook has many that succeeded, a few of which are new."""
    with transaction(crowded) as session:
        hook = destinations.create(session, tenant_id, url="https://x.example/", events=[], description="", by=HILUM)
        pile_up(session, hook.id, MANY)
        of_all = update(Delivery).values(status="succeeded", due_at=NOW)
        session.execute(of_all)
        last = select(Delivery.id).order_by(Delivery.id.desc()).limit(5)
        session.execute(of_all.where(Delivery.id.in_(last)).values(status="failed"))
        session.connection().exec_driver_sql("ANALYZE")
    asked = []
    listen(crowded.engine, "before_execute", lambda _, statement, *__: asked.append(statement))
    with transaction(crowded) as session:
        row = destinations.get(session, tenant_id, hook.id)
        assert len(webhook_views.page(session, row, limit=50, status=Status.FAILED).deliveries) == 5
        wanted = {"since": NOW - timedelta(days=1), "until": None, "statuses": [Status.FAILED, Status.CANCELED]}
        assert len(deliveries.redeliver_some(session, row, **wanted)) == 5
    shown, again = (_plan(crowded, one) for one in asked if isinstance(one, Select) and "deliveries.status" in str(one))
    assert "ix_deliveries_destination_id_status_id" in shown
    assert "ix_deliveries_destination_id_" in again  # by status, or by the time that the ids tell


def test_rehearsals_read_the_index_of_what_is_played(crowded, tenant_id):
    with transaction(crowded) as session:
        session.execute(update(Job).where(Job.mode == TEST, Job.id > _row(MANY // 2, "")["id"]).values(status="queued"))
        shared = {"tenant_id": tenant_id, "method": "gradcam", "created_at": NOW, "due_at": NOW}
        mode_of = {i: TEST if i % 1000 == 7 else "live" for i in range(MANY)}
        told = [
            {
                "id": f"exp_{i}",
                "job_id": _row(i, "")["id"],
                "mode": mode,
                "status": "queued" if mode == TEST else "failed",
            }
            for i, mode in mode_of.items()
        ]
        session.execute(insert(Explanation), [shared | one for one in told])
        session.connection().exec_driver_sql("ANALYZE")
    for table, choosing in ((Job, rehearsal._waiting_jobs()), (Explanation, rehearsal._waiting_explanations())):
        index = f"ix_{table.__tablename__}_rehearsed"
        assert index in _plan(crowded, choosing)
        assert index in _plan(crowded, rehearsal._to_stop(table, NOW))


def test_retention_reads_what_is_old_in_the_order_of_its_ids(crowded, tenant_id):
    before = NOW - timedelta(minutes=MANY - 50)
    plan = _plan(crowded, purge._told_jobs(tenant_id, before))
    assert any(index in plan for index in ("ix_jobs_tenant_id_id", "pk_jobs")), plan
    assert not any(word in plan for word in ("Sort", "TEMP B-TREE", "Seq Scan on jobs", "SCAN jobs")), plan
