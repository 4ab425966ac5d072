"""What becomes of a claimed row: every end it can have, on a real database and real files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import select, update

from shared import explanations, jobs, ledger, views
from shared.db import reading, transaction
from shared.errors import Unavailable
from shared.models import Event, Explanation, Job, Worker
from shared.queue import ANALYZE, EXPLAIN
from shared.schemas import JobView, Status
from tests import builders
from tests.servers import until
from worker import lease as leasing
from worker import loop, sandbox
from worker.lease import Lease
from worker.parts import Parts
from worker.pipeline import explain, render
from worker.sandbox import Sandbox

Submit = Callable[..., str]
JobOf = Callable[[str], JobView]

FILM = builders.chest(3)


def artifact(parts: Parts, tenant_id: str, job_id: str, name: str) -> bytes:
    with reading(parts.database) as session:
        key = views.artifact(session, tenant_id, job_id, name).key
    return parts.storage.get(key)


def test_a_film_becomes_a_diagnosis_and_then_a_picture(
    parts: Parts, submit: Submit, job_of: JobOf, tenant_id: str, rung: list[str]
) -> None:
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, EXPLAIN)
    assert job_of(job_id).explanations["gradcam"].status is Status.QUEUED  # it waits for its diagnosis
    loop.drain(parts, ANALYZE)
    job = job_of(job_id)
    assert job.status is Status.SUCCEEDED
    assert job.stage is None
    assert job.result is not None
    assert job.result.bundle == job.bundle == parts.bundle.identity
    assert set(job.result.per_model) == set(builders.NETWORKS)
    assert [stage.name for stage in job.result.stages] == ["decode", "quality", "lungs", "networks", "vote"]
    assert rung[-1] == EXPLAIN
    np.testing.assert_array_equal(render.read_png(artifact(parts, tenant_id, job_id, "input.png")), FILM)
    assert render.read_png(artifact(parts, tenant_id, job_id, "lungs.png")).shape == FILM.shape
    cams = explain.read_cams(artifact(parts, tenant_id, job_id, "cams.npz"))
    assert cams.maps.shape == (3, 4, 7, 7)
    assert cams.classes == job.result.classes
    before = job.result
    loop.drain(parts, EXPLAIN)
    job = job_of(job_id)
    said = job.explanations["gradcam"]
    assert said.status is Status.SUCCEEDED, said.error
    assert said.result is not None
    assert said.result["class"] == job.result.top_class if job.result else None
    assert sorted(said.artifacts) == ["gradcam.jpg", "gradcam.png"]
    assert render.read_png(artifact(parts, tenant_id, job_id, "gradcam.png")).shape == (*FILM.shape, 3)
    assert job.result == before


def test_an_explanation_infers_nothing(parts: Parts, submit: Submit, job_of: JobOf) -> None:
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    parts._predictor = None
    loop.drain(parts, EXPLAIN)
    assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED
    assert parts.loaded is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (builders.png(FILM)[:3000], "truncated"),
        (b"%PDF-1.4", "undecodable"),
        (builders.png(np.full((300, 300), 128, np.uint8)), "low_contrast"),
        (builders.png(builders.chest(1, (64, 60))), "too_small"),
        (builders.dicom_without_pixels(), "no_pixels"),
    ],
)
def test_what_cannot_be_judged_is_rejected_with_a_reason(
    parts: Parts, submit: Submit, job_of: JobOf, data: bytes, code: str
) -> None:
    job_id = submit(data, explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    job = job_of(job_id)
    assert job.status is Status.REJECTED
    assert job.reason is not None
    assert job.reason.code == code
    assert job.result is None
    assert job.explanations["gradcam"].status is Status.CANCELED


def test_one_worker_does_all_that_waits_in_the_order_of_service(parts: Parts, submit: Submit, job_of: JobOf) -> None:
    routine = [submit(builders.png(builders.chest(seed))) for seed in range(3)]
    stat = submit(builders.png(FILM), priority="stat")
    loop.drain(parts, ANALYZE)
    done = sorted([*routine, stat], key=lambda job_id: job_of(job_id).finished_at or 0)
    assert done == [stat, *routine]
    assert all(job_of(job_id).status is Status.SUCCEEDED for job_id in done)


def test_a_missing_file_is_our_failure(parts: Parts, submit: Submit, job_of: JobOf, tenant_id: str) -> None:
    job_id = submit(builders.png(FILM))
    parts.storage.delete(f"{tenant_id}/{job_id}/input")
    loop.drain(parts, ANALYZE)
    job = job_of(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "blob_not_found"


def test_an_unforeseen_error_fails_the_job_and_not_the_worker(
    parts: Parts, submit: Submit, job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = submit(builders.png(FILM), priority="stat"), submit(builders.png(builders.chest(4)))
    real, calls = parts.predictor.classify, []

    def once(tensors: np.ndarray) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("patient Doe")
        return real(tensors)

    monkeypatch.setattr(parts.predictor, "classify", once)
    loop.drain(parts, ANALYZE)
    failed = job_of(bad)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert failed.error.code == "internal_error"
    assert "Doe" not in failed.error.detail
    assert job_of(good).status is Status.SUCCEEDED


def test_a_store_that_is_away_puts_the_job_off(
    parts: Parts, submit: Submit, job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(builders.png(FILM))

    def away(*_: object) -> None:
        raise Unavailable

    monkeypatch.setattr(parts.storage, "put", away)
    loop.drain(parts, ANALYZE)
    job = job_of(job_id)
    assert job.status is Status.QUEUED
    assert job.attempt == 1
    with reading(parts.database) as session:
        assert session.get_one(Job, job_id).losses == 0
        assert not ledger.waiting(session, Job, 1)  # not before RETRY_S


def test_a_decoder_that_does_not_start_fails_the_job(
    parts: Parts, submit: Submit, job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Sandbox()
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    parts.sandbox = broken
    job_id = submit(builders.png(FILM))
    loop.drain(parts, ANALYZE)
    broken.close()
    job = job_of(job_id)
    assert job.status is Status.FAILED
    assert job.error is not None
    assert job.error.code == "decoder_unavailable"


def test_a_failed_explanation_never_touches_the_diagnosis(
    parts: Parts, submit: Submit, job_of: JobOf, tenant_id: str
) -> None:
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    before = job_of(job_id).result
    with reading(parts.database) as session:
        key = views.artifact(session, tenant_id, job_id, "cams.npz").key
    kept = parts.storage.get(key)
    parts.storage.delete(key)
    loop.drain(parts, EXPLAIN)
    job = job_of(job_id)
    assert job.explanations["gradcam"].status is Status.FAILED
    assert (job.status, job.result) == (Status.SUCCEEDED, before)
    parts.storage.put(key, kept, "application/zip")
    with transaction(parts.database) as session:
        explanations.request(session, tenant_id, job_id, "gradcam")
    loop.drain(parts, EXPLAIN)
    assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED


def test_a_method_of_another_version_fails_at_once(parts: Parts, submit: Submit) -> None:
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    with transaction(parts.database) as session:
        session.execute(update(Explanation).where(Explanation.job_id == job_id).values(method="other"))
    loop.drain(parts, EXPLAIN)
    with reading(parts.database) as session:
        row = session.scalars(select(Explanation).where(Explanation.job_id == job_id)).one()
    assert row.status == Status.FAILED
    assert row.error["code"] == "not_available"


class Slow:
    """A stand-in for the networks that takes its time, which is how a job is met in the middle."""

    def __init__(self, parts: Parts, seconds: float) -> None:
        self.entered = threading.Event()
        self.real, self.seconds = parts.predictor, seconds
        self.runtime = parts.predictor.runtime
        parts._predictor = self  # type: ignore[assignment]

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        self.entered.set()
        time.sleep(self.seconds)
        return self.real.segment(tensors)

    def classify(self, tensors: np.ndarray) -> object:
        return self.real.classify(tensors)


def in_background(parts: Parts, bell: str) -> threading.Thread:
    thread = threading.Thread(target=loop.drain, args=(parts, bell))
    thread.start()
    return thread


class Watch:
    """What the work on a row reports: its stages in order; `act` is done as soon as it has entered `stage`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, stage: str = "", act: Callable[[Lease], None] = lambda lease: None
    ) -> None:
        self.stages: list[str] = []
        report, begin = Lease.report, Lease.begin

        def watched(lease: Lease, entered: str) -> None:
            report(lease, entered)
            self.stages.append(entered)
            if entered == stage:
                act(lease)

        def begun(lease: Lease) -> None:
            begin(lease)
            if stage == CLAIMED:
                act(lease)

        monkeypatch.setattr(Lease, "report", watched)
        monkeypatch.setattr(Lease, "begin", begun)


CLAIMED = "claimed"  # and no stage begun
OF_A_JOB = ["decode", "quality", "lungs", "networks", "vote", "store", "finish"]
OF_AN_EXPLANATION = ["fetch", "draw", "store", "finish"]
noticed = pytest.mark.parametrize("is_noticed", [True, False], ids=["noticed", "unnoticed"])


def notice(parts: Parts, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """Let leases learn of a cancel at once; or never, as when the work is done before they are renewed."""
    renew_s = 0.05 if at_once else 1000.0
    parts.settings = parts.settings.model_copy(update={"renew_s": renew_s, "lease_s": 2000.0})
    monkeypatch.setattr(leasing, "STAGE_EVERY_S", renew_s)


def until_noticed(lease: Lease) -> None:
    until(lambda: lease._canceled, within_s=20, what="a lease that knows of the cancel")


def up_to(stage: str, stages: list[str]) -> list[str]:
    return [] if stage == CLAIMED else stages[: stages.index(stage) + 1]


def test_these_are_the_stages(parts: Parts, submit: Submit, job_of: JobOf, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    loop.drain(parts, EXPLAIN)
    assert watch.stages == OF_A_JOB + OF_AN_EXPLANATION
    assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED


@noticed
@pytest.mark.parametrize("stage", [CLAIMED, *OF_A_JOB])
def test_a_running_job_is_canceled_at_every_stage(
    parts: Parts,
    submit: Submit,
    job_of: JobOf,
    tenant_id: str,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    is_noticed: bool,
) -> None:
    """It enters no other stage; where the work is done before the lease is renewed, it is canceled all the same."""
    notice(parts, monkeypatch, is_noticed)
    job_id = submit(builders.png(FILM), explain=["gradcam"])

    def cancel(lease: Lease) -> None:
        if is_noticed and stage != CLAIMED:
            until(lambda: job_of(job_id).stage == stage, within_s=20, what="a stage that is told")
        with transaction(parts.database) as session:
            assert jobs.cancel(session, tenant_id, job_id).status == Status.RUNNING
        if is_noticed:
            until_noticed(lease)

    watch = Watch(monkeypatch, stage, cancel)
    loop.drain(parts, ANALYZE)
    job = job_of(job_id)
    assert (job.status, job.stage, job.result, job.artifacts) == (Status.CANCELED, None, None, {})
    assert job.explanations["gradcam"].status is Status.CANCELED
    assert watch.stages == (up_to(stage, OF_A_JOB) if is_noticed else OF_A_JOB)
    assert told(parts) == ["job.canceled"]


@noticed
@pytest.mark.parametrize("stage", [CLAIMED, *OF_AN_EXPLANATION])
def test_a_running_explanation_is_canceled_at_every_stage(
    parts: Parts,
    submit: Submit,
    job_of: JobOf,
    tenant_id: str,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    is_noticed: bool,
) -> None:
    notice(parts, monkeypatch, is_noticed)
    job_id = submit(builders.png(FILM), explain=["gradcam"])
    loop.drain(parts, ANALYZE)
    diagnosed = job_of(job_id)

    def cancel(lease: Lease) -> None:
        with transaction(parts.database) as session:
            explanations.cancel(session, tenant_id, job_id, "gradcam")
        assert job_of(job_id).explanations["gradcam"].status is Status.RUNNING
        if is_noticed:
            until_noticed(lease)

    with monkeypatch.context() as watching:
        watch = Watch(watching, stage, cancel)
        loop.drain(parts, EXPLAIN)
    assert watch.stages == (up_to(stage, OF_AN_EXPLANATION) if is_noticed else OF_AN_EXPLANATION)
    job = job_of(job_id)
    assert job.explanations["gradcam"].status is Status.CANCELED
    assert (job.status, job.result, job.artifacts) == (Status.SUCCEEDED, diagnosed.result, diagnosed.artifacts)
    assert told(parts) == ["job.succeeded"]
    with transaction(parts.database) as session:
        assert explanations.request(session, tenant_id, job_id, "gradcam")
    loop.drain(parts, EXPLAIN)
    assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED


def told(parts: Parts) -> list[str]:
    with reading(parts.database) as session:
        return list(session.scalars(select(Event.type).order_by(Event.id)))


@pytest.mark.parametrize("end", ["rejected", "failed", "put off", "handed back"])
def test_whatever_would_become_of_it_what_was_canceled_is_canceled(
    parts: Parts, submit: Submit, job_of: JobOf, tenant_id: str, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Above all it is not queued again, where it would wait for a worker that looks."""
    notice(parts, monkeypatch, at_once=False)
    job_id = submit(builders.png(FILM)[: 3000 if end == "rejected" else None])
    raised: dict[str, Exception] = {"failed": RuntimeError("unforeseen"), "put off": Unavailable()}

    def cancel(lease: Lease) -> None:
        assert lease.claim.attempt == 1, "it was queued again"
        with transaction(parts.database) as session:
            jobs.cancel(session, tenant_id, job_id)
        if end == "handed back":
            leasing.hand_back(parts, lease.claim)
        if end in raised:
            raise raised[end]

    Watch(monkeypatch, "decode", cancel)
    loop.drain(parts, ANALYZE)
    assert job_of(job_id).status is Status.CANCELED
    assert told(parts) == ["job.canceled"]


def test_the_lease_is_renewed_while_the_networks_run(parts: Parts, submit: Submit, job_of: JobOf) -> None:
    parts.settings = parts.settings.model_copy(update={"renew_s": 0.2, "lease_s": 0.8})
    slow = Slow(parts, 2.0)
    job_id = submit(builders.png(FILM))
    thread = in_background(parts, ANALYZE)
    assert slow.entered.wait(20)
    while thread.is_alive():
        with transaction(parts.database) as session:
            jobs.expire(session, parts.settings)
        time.sleep(0.1)
    job = job_of(job_id)
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 1)


def test_a_worker_that_lost_its_row_writes_nothing(parts: Parts, submit: Submit, job_of: JobOf) -> None:
    slow = Slow(parts, 1.5)
    job_id = submit(builders.png(FILM))
    thread = in_background(parts, ANALYZE)
    assert slow.entered.wait(20)
    with transaction(parts.database) as session:
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=long_ago))
        jobs.expire(session, parts.settings)
        (theirs,) = ledger.claim_next(session, Job, 1, lease_s=60)
    thread.join(20)
    job = job_of(job_id)
    assert (job.status, job.attempt) == (Status.RUNNING, 2)
    assert not job.artifacts
    with transaction(parts.database) as session:
        jobs.stop(session, theirs)


def test_a_worker_that_stops_hands_back_what_takes_long(
    parts: Parts, submit: Submit, job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "HAND_BACK_S", 0.3)
    slow = Slow(parts, 2.0)
    job_id, next_id = submit(builders.png(FILM)), submit(builders.png(FILM))
    thread = in_background(parts, ANALYZE)
    assert slow.entered.wait(20)
    parts.stop.set()
    time.sleep(1.0)
    assert job_of(job_id).status is Status.QUEUED
    thread.join(10)
    for untouched in (job_id, next_id):
        assert job_of(untouched).status is Status.QUEUED
    with reading(parts.database) as session:
        assert session.get_one(Job, job_id).losses == 0


def test_the_pulse_says_who_lives_and_works_where_no_bell_rang(parts: Parts, submit: Submit, job_of: JobOf) -> None:
    pulse = loop.Pulse(parts)
    pulse.start()
    job_id = submit(builders.png(FILM))
    deadline = time.monotonic() + 15
    while not job_of(job_id).status.terminal and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job_of(job_id).status is Status.SUCCEEDED
    with reading(parts.database) as session:
        row = session.get_one(Worker, parts.worker_id)
        assert (row.queues, row.bundle) == (["analyze", "explain"], parts.bundle.identity)
        assert row.runtime == parts.predictor.runtime.model_dump()
    pulse.stop()
    with reading(parts.database) as session:
        assert session.get(Worker, parts.worker_id) is None


def test_several_rows_are_claimed_at_once_where_the_operator_says_so(
    parts: Parts, submit: Submit, job_of: JobOf
) -> None:
    parts.settings = parts.settings.model_copy(update={"claim_batch": 3})
    ids = [submit(builders.png(builders.chest(seed))) for seed in range(5)]
    loop.drain(parts, ANALYZE)
    assert {job_of(job_id).status for job_id in ids} == {Status.SUCCEEDED}
