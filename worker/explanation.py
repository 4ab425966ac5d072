"""One claimed explanation: draw what the diagnosis left. Whatever happens here, the diagnosis stands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from shared import explanations, ledger, logs, views
from shared.db import reading, transaction
from shared.errors import LeaseLost, StorageFull, Unavailable
from shared.ledger import Claim
from shared.models import Explanation, Job
from shared.schemas import Failure
from worker import artifacts
from worker.analysis import RETRY_S, failure_of, store
from worker.artifacts import Files
from worker.lease import Canceled, Lease
from worker.parts import Parts
from worker.pipeline import explain, render
from worker.pipeline.explain import Cams

GRADCAM = "gradcam"
NOT_AVAILABLE = Failure(code="not_available", detail="This method is not offered by this version.")

log = logs.get("worker.explanation")


def run(parts: Parts, lease: Lease) -> None:
    """Work on one explanation until it has ended or another worker owns it."""
    with logs.bind(explanation_id=lease.claim.id, attempt=lease.claim.attempt), suppress(LeaseLost):
        lease.begin()
        end = _outcome(parts, lease)
        with transaction(parts.database) as session:
            end(session)


def _outcome(parts: Parts, lease: Lease) -> Callable[[Session], None]:
    """How the explanation ends, as a function that writes it. LeaseLost."""
    claim = lease.claim
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
    except Canceled:
        return partial(explanations.stop, claim=claim)
    except (Unavailable, StorageFull) as error:
        log.warning("put_off", code=error.code)
        return partial(ledger.requeue, claim=claim, delay_s=RETRY_S)
    except LeaseLost:
        raise
    except Exception as error:
        return partial(explanations.fail, claim=claim, failure=failure_of(error))


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
