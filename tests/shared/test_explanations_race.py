"""An explanation that is asked for while its job ends: it is released with it, or refused; it never waits for ever."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import delete, select, text

from shared import explanations, jobs, ledger
from shared.db import Database, reading, transaction
from shared.errors import Conflict
from shared.ledger import Claim
from shared.models import Explanation, Job
from shared.schemas import Reason
from shared.settings import Settings
from tests.servers import until
from tests.values import analysis

pytestmark = pytest.mark.parametrize(  # the writers of SQLite take turns
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@pytest.mark.parametrize("ends_well", [True, False])
def test_asking_waits_for_a_worker_that_ends_the_job(
    database: Database, settings: Settings, tenant_id: str, ends_well: bool
) -> None:
    claim = claimed(database, settings, tenant_id)
    asking, refused = requesting(database, claim)
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


@pytest.mark.parametrize("other", ["asks for the same", "purges the job"])
def test_who_asks_when_it_is_too_late_is_told_to_ask_again(
    database: Database, settings: Settings, tenant_id: str, other: str
) -> None:
    claim = claimed(database, settings, tenant_id)
    asking, refused = requesting(database, claim)
    with transaction(database) as session:
        if other == "asks for the same":
            explanations.request(session, tenant_id, claim.id, "gradcam")
        else:
            session.execute(delete(Job).where(Job.id == claim.id))
        asking.start()
        until(lambda: _blocked(database), what="a request that waits for the other")
    asking.join(30)
    assert refused == ["changed_meanwhile"]


def claimed(database: Database, settings: Settings, tenant_id: str) -> Claim:
    """The claim of a job that a worker has in hand."""
    with transaction(database) as session:
        made = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "a" * 64}
        jobs.submit(session, settings, tenant_id=tenant_id, job_id=jobs.new_id(), **made)
    with transaction(database) as session:
        (claim,) = ledger.claim_next(session, Job, 1, lease_s=60)
    return claim


def requesting(database: Database, claim: Claim) -> tuple[threading.Thread, list[str]]:
    """A thread that asks for an explanation, and the codes with which it is refused."""
    refused: list[str] = []

    def ask() -> None:
        try:
            with transaction(database) as session:
                explanations.request(session, claim.tenant_id, claim.id, "gradcam")
        except Conflict as error:
            refused.append(error.code)

    return threading.Thread(target=ask), refused


def _blocked(database: Database) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with reading(database) as session:
        return session.execute(text(waiting)).scalar_one() > 0
