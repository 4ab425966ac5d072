"""One claimed explanation: draw what the diagnosis left. Whatever happens here, the diagnosis stands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from shared import explanations, ledger, logs, views
from shared.db import reading
from shared.errors import LeaseLost
from shared.ledger import Claim
from shared.models import Explanation, Job
from shared.schemas import Failure
from worker import artifacts
from worker.analysis import RETRY_S
from worker.artifacts import Files
from worker.lease import Canceled, Lease
from worker.parts import Parts
from worker.pipeline import explain, render
from worker.pipeline.explain import Cams
from worker.settle import End, failure_of, mends_itself, settle, store, unless_canceled

GRADCAM = "gradcam"
NOT_AVAILABLE = Failure(code="not_available", detail="This method is not offered by this version.")

log = logs.get("worker.explanation")


def run(parts: Parts, lease: Lease) -> Callable[[], None]:
    """Draw one explanation now and return the rest of the work, which may run beside the next."""
    end = _outcome(parts, lease)
    return partial(_settle, parts, lease, end)


def _outcome(parts: Parts, lease: Lease) -> End:
    """How the explanation ends."""
    claim = lease.claim
    lease.begin()
    try:
        with reading(parts.database) as session:
            row = session.get_one(Explanation, claim.id)
            job_id, method = row.job_id, row.method
        if method != GRADCAM:
            return partial(explanations.fail, claim=claim, failure=NOT_AVAILABLE)
        result, files = _drawn(parts, lease, job_id)
        lease.report("store")
        stored = store(parts, claim.tenant_id, job_id, claim.attempt, files)
        lease.report("finish")
        return partial(explanations.finish, claim=claim, result=result, artifacts=stored)
    except Exception as error:
        return _end_of(claim, error)


def _end_of(claim: Claim, error: Exception) -> End:
    """How an explanation ends that has no picture."""
    if isinstance(error, Canceled):
        return partial(explanations.stop, claim=claim)
    if mends_itself(error):
        log.warning("put_off", error=type(error).__name__)
        return partial(ledger.requeue, claim=claim, delay_s=RETRY_S)
    if isinstance(error, LeaseLost):
        return _nothing
    return partial(explanations.fail, claim=claim, failure=failure_of(error))


def _settle(parts: Parts, lease: Lease, end: End) -> None:
    with logs.bind(explanation_id=lease.claim.id, attempt=lease.claim.attempt):
        settle(parts, lease, unless_canceled(lease.claim, end))


def _nothing(session: object) -> None:
    """Another worker owns the row: whatever is to be written about it, that worker writes."""


def _drawn(parts: Parts, lease: Lease, job_id: str) -> tuple[dict[str, Any], Files]:
    lease.report("fetch")
    film, mask, cams, class_name = _left_by_diagnosis(parts, lease.claim, job_id)
    lease.report("draw")
    return artifacts.of_gradcam(film, mask, cams, class_name)


def _left_by_diagnosis(parts: Parts, claim: Claim, job_id: str) -> tuple[np.ndarray, np.ndarray, Cams, str]:
    """The film uint8 [H, W], the lungs bool [H, W], the class maps, and the top class. NotFound, Unavailable."""
    with reading(parts.database) as session:
        names = ("input.png", "lungs.png", "cams.npz")
        keys = [views.artifact(session, claim.tenant_id, job_id, name).key for name in names]
        class_name = session.get_one(Job, job_id).top_class
    film, mask, cams = (parts.storage.get(key) for key in keys)
    assert class_name is not None
    return render.read_png(film), render.read_png(mask).astype(bool), explain.read_cams(cams), class_name
