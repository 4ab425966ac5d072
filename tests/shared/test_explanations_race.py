"""An explanation that is asked for while its job ends: it is released with it, or refused; it never waits for ever."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select, text

from shared import explanations, jobs, ledger
from shared.db import Database, reading, transaction
from shared.errors import Conflict
from shared.models import Explanation, Job
from shared.schemas import Reason
from shared.settings import Settings
from tests.servers import until
from tests.values import analysis


@pytest.mark.parametrize("ends_well", [True, False])
def test_asking_waits_for_a_worker_that_ends_the_job(
    database: Database, settings: Settings, tenant_id: str, ends_well: bool
) -> None:
    if database.engine.dialect.name == "sqlite":
        return  # its writers take turns
    with transaction(database) as session:
        made = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "a" * 64}
        jobs.submit(session, settings, tenant_id=tenant_id, job_id=jobs.new_id(), **made)
    with transaction(database) as session:
        (claim,) = ledger.claim_next(session, Job, 1, lease_s=60)
    refused: list[str] = []

    def ask() -> None:
        try:
            with transaction(database) as session:
                explanations.request(session, tenant_id, claim.id, "gradcam")
        except Conflict as error:
            refused.append(error.code)

    asking = threading.Thread(target=ask)
    with transaction(database) as session:
        if ends_well:
            jobs.finish(session, claim, analysis(), [])
        else:
            jobs.reject(session, claim, Reason(code="too_small", detail="", value=1.0, threshold=2.0), "b")
        asking.start()
        until(lambda: _blocked(database), what="a request that waits for the job")
    asking.join(30)
    with reading(database) as session:
        found = session.scalars(select(Explanation)).all()
    assert refused == ([] if ends_well else ["no_diagnosis"])
    assert [row.ready_at is not None for row in found] == ([True] if ends_well else [])


def _blocked(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with reading(database) as session:
        return session.execute(text(waiting)).scalar_one() > 0
