"""The ledger: order of service, leases, fencing tokens, hand-back, and what becomes of rows whose worker died."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from shared import explanations, jobs, ledger, views
from shared.artifacts import Stored
from shared.db import reading, transaction
from shared.errors import Conflict, LeaseLost, NotFound
from shared.models import Event, Explanation, Job
from shared.schemas import Failure, Reason, Status
from tests.values import analysis

LEASE_S = 30.0


@pytest.fixture
def submit(database, settings, tenant_id):
    def one(priority="routine", **wishes):
        job_id = jobs.new_id()
        with transaction(database) as session:
            jobs.submit(
                session,
                settings,
                tenant_id=tenant_id,
                job_id=job_id,
                blob_key=f"{tenant_id}/{job_id}/input",
                media_type="image/png",
                size=10,
                sha256="0" * 64,
                priority=priority,
                **wishes,
            )
        return job_id

    return one


@pytest.fixture
def claim(database):
    def some(n=1, table=Job, lease_s=LEASE_S):
        with transaction(database) as session:
            return ledger.claim_next(session, table, n, lease_s=lease_s)

    return some


@pytest.fixture
def job_of(database, tenant_id):
    def read(job_id):
        with reading(database) as session:
            return views.view(session, views.get(session, tenant_id, job_id))

    return read


def _expire(database, table=Job):
    past = datetime.now(UTC) - timedelta(hours=1)
    with transaction(database) as session:
        session.execute(update(table).where(table.status == "running").values(lease_until=past))


def _events(database, job_id):
    with reading(database) as session:
        return [e.type for e in session.query(Event).filter(Event.job_id == job_id).order_by(Event.id)]


def test_the_earliest_due_is_served_first(submit, claim):
    routine, urgent, stat = submit("routine"), submit("urgent"), submit("stat")
    assert [c.id for c in claim(3)] == [stat, urgent, routine]


def test_a_stat_does_not_overtake_what_is_overdue(submit, claim, database):
    waiting = submit("routine")
    with transaction(database) as session:
        session.execute(update(Job).values(due_at=datetime.now(UTC) - timedelta(minutes=1)))
    submit("stat")
    assert claim()[0].id == waiting


def test_a_claim_takes_at_most_n_and_nothing_twice(submit, claim):
    made = {submit() for _ in range(5)}
    first, second, third = claim(3), claim(3), claim(3)
    assert (len(first), len(second), len(third)) == (3, 2, 0)
    assert {c.id for c in [*first, *second]} == made


def test_concurrent_claims_share_the_rows(submit, claim):
    made = {submit() for _ in range(40)}
    taken: list[str] = []

    def work():
        while found := claim(3):
            taken.extend(c.id for c in found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(made)
    assert set(taken) == made


def test_a_late_worker_writes_nothing(submit, claim, database, settings, job_of):
    job_id = submit()
    frozen = claim()[0]
    _expire(database)
    with transaction(database) as session:
        jobs.expire(session, settings)
    fresh = claim()[0]
    assert fresh.token != frozen.token
    assert fresh.attempt == 2
    for late in (
        lambda s: jobs.finish(s, frozen, analysis(), [Stored("lungs.png", "t/j/1/lungs.png", "image/png", 1)]),
        lambda s: jobs.fail(s, frozen, Failure(code="x", detail="x")),
        lambda s: jobs.reject(s, frozen, Reason(code="x", detail="x"), "b"),
        lambda s: jobs.hand_back(s, frozen),
        lambda s: ledger.renew(s, frozen, lease_s=LEASE_S),
    ):
        with pytest.raises(LeaseLost), transaction(database) as session:
            late(session)
    assert job_of(job_id).status is Status.RUNNING
    assert job_of(job_id).artifacts == {}
    with transaction(database) as session:
        jobs.finish(session, fresh, analysis(), [])
    assert job_of(job_id).status is Status.SUCCEEDED
    with pytest.raises(LeaseLost), transaction(database) as session:
        jobs.finish(session, fresh, analysis(), [])
    assert _events(database, job_id) == ["job.succeeded"]


def test_renewing_keeps_the_row_and_tells_of_a_cancel(submit, claim, database, settings, tenant_id, job_of):
    job_id = submit()
    held = claim()[0]
    _expire(database)
    with transaction(database) as session:
        assert ledger.renew(session, held, lease_s=LEASE_S, stage="lungs") is False
    with transaction(database) as session:
        assert not jobs.expire(session, settings).requeued
    assert job_of(job_id).stage == "lungs"
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, job_id)
    with transaction(database) as session:
        assert ledger.renew(session, held, lease_s=LEASE_S) is True
        jobs.stop(session, held)
    assert job_of(job_id).status is Status.CANCELED
    assert _events(database, job_id) == ["job.canceled"]


def test_a_job_that_kills_its_workers_fails_in_the_end(submit, claim, database, settings, job_of):
    job_id = submit(explain=["gradcam"])
    for _ in range(settings.max_attempts):
        assert job_of(job_id).status is Status.QUEUED
        assert len(claim()) == 1
        _expire(database)
        with transaction(database) as session:
            jobs.expire(session, settings)
    view = job_of(job_id)
    assert view.status is Status.FAILED
    assert view.error.code == "worker_lost"
    assert view.explanations["gradcam"].status is Status.CANCELED
    assert claim() == []
    assert _events(database, job_id) == ["job.failed"]


def test_a_row_that_lost_a_worker_is_claimed_alone(submit, claim, database, settings):
    poison = submit()
    claim()
    healthy = [submit() for _ in range(3)]
    _expire(database)
    with transaction(database) as session:
        jobs.expire(session, settings)
    batches = [[c.id for c in claim(8)], [c.id for c in claim(8)]]
    assert sorted(batches, key=len) == [[poison], healthy]


def test_handing_back_keeps_the_place_and_counts_no_loss(submit, claim, database, rung):
    first, second = submit(), submit()
    rung.clear()
    with transaction(database) as session:
        jobs.hand_back(session, ledger.claim_next(session, Job, 1, lease_s=LEASE_S)[0])
    assert rung == ["analyze"]
    assert [c.id for c in claim(2)] == [first, second]
    with reading(database) as session:
        assert session.get(Job, first).losses == 0


def test_what_was_to_be_canceled_is_canceled_when_its_worker_dies(submit, claim, database, settings, tenant_id, job_of):
    job_id = submit()
    claim()
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, job_id)
    _expire(database)
    with transaction(database) as session:
        jobs.expire(session, settings)
    assert job_of(job_id).status is Status.CANCELED


def test_cancel_of_a_queued_job_is_at_once_and_once(submit, claim, database, tenant_id, job_of):
    job_id = submit(explain=["gradcam"])
    for _ in range(2):
        with transaction(database) as session:
            jobs.cancel(session, tenant_id, job_id)
    assert job_of(job_id).status is Status.CANCELED
    assert job_of(job_id).explanations["gradcam"].status is Status.CANCELED
    assert claim() == []
    assert _events(database, job_id) == ["job.canceled"]


def test_an_ended_job_cannot_be_canceled(submit, claim, database, tenant_id):
    job_id = submit()
    with transaction(database) as session:
        jobs.finish(session, ledger.claim_next(session, Job, 1, lease_s=LEASE_S)[0], analysis(), [])
    with pytest.raises(Conflict), transaction(database) as session:
        jobs.cancel(session, tenant_id, job_id)


def test_another_tenant_sees_and_cancels_nothing(submit, database, job_of):
    job_id = submit()
    for forbidden in (views.get, jobs.cancel):
        with pytest.raises(NotFound), transaction(database) as session:
            forbidden(session, "ten_other", job_id)
    assert job_of(job_id).status is Status.QUEUED


def test_an_explanation_waits_for_its_diagnosis(submit, claim, database, rung, job_of):
    job_id = submit(explain=["gradcam"])
    assert claim(table=Explanation) == []
    held = claim()[0]
    rung.clear()
    with transaction(database) as session:
        jobs.finish(session, held, analysis(), [])
    assert rung == ["explain"]
    before = job_of(job_id)
    explaining = claim(table=Explanation)[0]
    with transaction(database) as session:
        picture = Stored("gradcam.png", f"t/{job_id}/1/gradcam.png", "image/png", 9)
        explanations.finish(session, explaining, {"class": "normal"}, [picture])
    view = job_of(job_id)
    assert view.result == before.result
    assert view.explanations["gradcam"].status is Status.SUCCEEDED
    assert view.explanations["gradcam"].artifacts == ["gradcam.png"]
    assert _events(database, job_id) == ["job.succeeded", "explanation.succeeded"]


def test_a_failed_explanation_leaves_the_diagnosis_and_can_be_asked_again(
    submit, claim, database, settings, tenant_id, job_of
):
    job_id = submit(explain=["gradcam"])
    with transaction(database) as session:
        jobs.finish(session, ledger.claim_next(session, Job, 1, lease_s=LEASE_S)[0], analysis(), [])
    for _ in range(settings.max_attempts):
        assert len(claim(table=Explanation)) == 1
        _expire(database, Explanation)
        with transaction(database) as session:
            explanations.expire(session, settings)
    view = job_of(job_id)
    assert view.status is Status.SUCCEEDED
    assert view.explanations["gradcam"].error.code == "worker_lost"
    with transaction(database) as session:
        explanations.request(session, tenant_id, job_id, "gradcam")
    assert len(claim(table=Explanation)) == 1


def test_no_explanation_of_a_job_without_a_diagnosis(submit, claim, database, tenant_id):
    job_id = submit()
    with transaction(database) as session:
        held = ledger.claim_next(session, Job, 1, lease_s=LEASE_S)[0]
        jobs.reject(session, held, Reason(code="no_lungs", detail="no lungs"), "b")
    with pytest.raises(Conflict), transaction(database) as session:
        explanations.request(session, tenant_id, job_id, "gradcam")


def test_nothing_rings_when_the_transaction_fails(submit, database, rung, settings, tenant_id):
    submit()
    rung.clear()

    def broken():
        with transaction(database) as session:
            jobs.hand_back(session, ledger.claim_next(session, Job, 1, lease_s=LEASE_S)[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert rung == []


def test_versions_grow_with_every_visible_change(submit, claim, database):
    job_id = submit()

    def version():
        with reading(database) as session:
            return views.versions(session, [job_id, "job_none"])[job_id][0]

    seen = [version()]
    held = claim()[0]
    seen.append(version())
    with transaction(database) as session:
        ledger.renew(session, held, lease_s=LEASE_S)
    assert version() == seen[-1]
    with transaction(database) as session:
        ledger.renew(session, held, lease_s=LEASE_S, stage="lungs")
    seen.append(version())
    with transaction(database) as session:
        jobs.finish(session, held, analysis(), [])
    seen.append(version())
    assert seen == sorted(set(seen))
