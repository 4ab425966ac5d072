"""One claimed job: fetch and analyze, then store and settle. No transaction is open while the pipeline runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shared import jobs, ledger, logs
from shared.db import reading
from shared.errors import LeaseLost, Rejected
from shared.models import Job
from shared.schemas import Reason
from worker import artifacts
from worker.lease import Canceled, Lease
from worker.parts import Parts
from worker.pipeline.analyze import Diagnosis, analyze
from worker.settle import End, failure_of, mends_itself, settle, store, unless_canceled

DECODER_AWAY = "decoder_unavailable"
RETRY_S = 5.0  # a store that is away is given this long before the job is tried again

log = logs.get("worker.analysis")


def run(parts: Parts, lease: Lease) -> Callable[[], None]:
    """Analyze one job now and return the rest of the work, which may run beside the next analysis."""
    with logs.bind(job_id=lease.claim.id, attempt=lease.claim.attempt):
        try:
            diagnosis = _diagnose(parts, lease)
        except Exception as error:
            return partial(_settle, parts, lease, _end_of(parts, lease, error))
        return partial(_store_and_settle, parts, lease, diagnosis)


def _diagnose(parts: Parts, lease: Lease) -> Diagnosis:
    lease.begin()
    with reading(parts.database) as session:
        key = session.get_one(Job, lease.claim.id).blob_key
    data = parts.storage.get(key)
    return analyze(data, parts.predictor, parts.bundle, decode=parts.sandbox.decode, report=lease.report)


def _store_and_settle(parts: Parts, lease: Lease, diagnosis: Diagnosis) -> None:
    claim = lease.claim
    try:
        lease.report("store")
        files = artifacts.of_diagnosis(diagnosis, parts.bundle)
        stored = store(parts, claim.tenant_id, claim.id, claim.attempt, files)
        lease.report("finish")
        end: End = partial(jobs.finish, claim=claim, analysis=diagnosis.analysis, artifacts=stored)
    except Exception as error:
        end = _end_of(parts, lease, error)
    _settle(parts, lease, end)


def _settle(parts: Parts, lease: Lease, end: End) -> None:
    with logs.bind(job_id=lease.claim.id, attempt=lease.claim.attempt):
        settle(parts, lease, unless_canceled(lease.claim, end))
        log.info("settled", bundle=parts.bundle.identity)


def _end_of(parts: Parts, lease: Lease, error: Exception) -> End:
    """How a job ends that has no diagnosis: each error is an answer, a failure, a hand-back, or nobody's business."""
    claim = lease.claim
    if isinstance(error, Rejected):
        reason = Reason(code=error.code, detail=error.detail, value=error.value, threshold=error.threshold)
        log.info("rejected", code=reason.code, value=reason.value, threshold=reason.threshold)
        return partial(jobs.reject, claim=claim, reason=reason, bundle=parts.bundle.identity)
    if isinstance(error, Canceled):
        return partial(jobs.stop, claim=claim)
    if mends_itself(error) and getattr(error, "code", "") != DECODER_AWAY:  # which no waiting mends
        log.warning("put_off", error=type(error).__name__)
        return partial(ledger.requeue, claim=claim, delay_s=RETRY_S, stage=None)
    if isinstance(error, LeaseLost):
        return _nothing
    return partial(jobs.fail, claim=claim, failure=failure_of(error))


def _nothing(session: object) -> None:
    """Another worker owns the row: whatever is to be written about it, that worker writes."""
