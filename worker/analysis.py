"""One claimed job: fetch, analyze, store, settle. The pipeline runs between two transactions, never inside one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy.orm import Session

from shared import jobs, ledger, logs
from shared.artifacts import Stored, key_of
from shared.db import reading, transaction
from shared.errors import (
    BundleError,
    HilumError,
    LeaseLost,
    Misconfigured,
    NotFound,
    Rejected,
    StorageFull,
    Unavailable,
)
from shared.models import Job
from shared.schemas import Failure, Reason
from worker import artifacts
from worker.lease import Canceled, Lease
from worker.parts import Parts
from worker.pipeline.analyze import Diagnosis, analyze

RETRY_S = 5.0  # a store that is away is given this long before the job is tried again

log = logs.get("worker.analysis")


def run(parts: Parts, lease: Lease) -> None:
    """Work on one job until it has ended or another worker owns it; raises only what no job is to blame for."""
    with logs.bind(job_id=lease.claim.id, attempt=lease.claim.attempt), suppress(LeaseLost):
        lease.begin()
        end = _outcome(parts, lease)
        with transaction(parts.database) as session:
            end(session)


def store(parts: Parts, tenant_id: str, job_id: str, attempt: int, files: dict[str, tuple[bytes, str]]) -> list[Stored]:
    """Put files under keys of this attempt; StorageFull, Unavailable."""
    stored = []
    for name, (data, media_type) in files.items():
        key = key_of(tenant_id, job_id, attempt, name)
        parts.storage.put(key, data, media_type)
        stored.append(Stored(name, key, media_type, len(data)))
    return stored


def _outcome(parts: Parts, lease: Lease) -> Callable[[Session], None]:
    """How the job ends, as a function that writes it. LeaseLost."""
    claim = lease.claim
    try:
        diagnosis = _diagnose(parts, lease)
        lease.report("store")
        stored = store(parts, claim.tenant_id, claim.id, claim.attempt, artifacts.of_diagnosis(diagnosis, parts.bundle))
        lease.report("finish")
        log.info("diagnosed", top_class=diagnosis.analysis.top_class, bundle=parts.bundle.identity)
        return partial(jobs.finish, claim=claim, analysis=diagnosis.analysis, artifacts=stored)
    except Rejected as no:
        log.info("rejected", code=no.code, value=no.value, threshold=no.threshold)
        reason = Reason(code=no.code, detail=no.detail, value=no.value, threshold=no.threshold)
        return partial(jobs.reject, claim=claim, reason=reason, bundle=parts.bundle.identity)
    except Canceled:
        return partial(jobs.stop, claim=claim)
    except (Unavailable, StorageFull) as error:
        log.warning("put_off", code=error.code)
        return partial(ledger.requeue, claim=claim, delay_s=RETRY_S, stage=None)
    except LeaseLost:
        raise
    except Exception as error:
        return partial(jobs.fail, claim=claim, failure=failure_of(error))


def _diagnose(parts: Parts, lease: Lease) -> Diagnosis:
    with reading(parts.database) as session:
        key = session.get_one(Job, lease.claim.id).blob_key
    data = parts.storage.get(key)
    return analyze(data, parts.predictor, parts.bundle, decode=parts.sandbox.decode, report=lease.report)


def failure_of(error: Exception) -> Failure:
    """What the owner of the row is told; an error nobody foresaw is logged with its traceback and not quoted."""
    if isinstance(error, NotFound):
        log.error("blob_missing")
        return Failure(code="blob_not_found", detail="The stored file is gone.")
    if isinstance(error, (BundleError, Misconfigured)):
        log.error("unusable", code=error.code, detail=error.detail)
        return Failure(code=error.code, detail=error.title)
    if isinstance(error, HilumError):
        return Failure(code=error.code, detail=error.detail)
    log.exception("unforeseen")
    return Failure(code="internal_error", detail=f"An error that nobody foresaw: {type(error).__name__}.")
