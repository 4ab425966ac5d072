"""Explanations over HTTP: each is a resource of its own, which can never hurt its job."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.deps import ByDep, CallerDep, PartsDep, ReaderDep, SubmitterDep, ensure_reach
from api.params import JobId
from api.problems import documented
from shared import deeds, errors, explanations, views
from shared.db import reading, transaction
from shared.errors import NotFound
from shared.schemas import ExplanationView, Frozen, JobView, Method

router = APIRouter(prefix="/v1/jobs/{job_id}/explanations", tags=["explanations"])

ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.NotFound, errors.Invalid, errors.Unavailable)


class Wanted(Frozen):
    """Which explanation to make."""

    method: Method


@router.post(
    "",
    status_code=202,
    response_model=ExplanationView,
    summary="Ask for an explanation",
    responses={**ERRORS, **documented(errors.Conflict)},
)
def request(
    wanted: Wanted, job_id: JobId, tenant_id: SubmitterDep, found: CallerDep, by: ByDep, parts: PartsDep
) -> Response:
    """Queue the explanation, or answer with the one there is; 409 when the job ended without a diagnosis."""
    with transaction(parts.database) as session:
        ensure_reach(found, views.get(session, tenant_id, job_id).mode)
        if explanations.request(session, tenant_id, job_id, wanted.method):
            deeds.record(session, "explanation.requested", job_id, tenant_id=tenant_id, **by, method=wanted.method)
        view = views.view(session, views.get(session, tenant_id, job_id))
    return _answer(view, wanted.method, 202)


@router.get("/{method}", response_model=ExplanationView, summary="Read an explanation", responses=ERRORS)
def read(method: Method, job_id: JobId, tenant_id: ReaderDep, parts: PartsDep) -> Response:
    """The explanation as it stands; its pictures are artefacts of the job."""
    with reading(parts.database) as session:
        view = views.view(session, views.get(session, tenant_id, job_id))
    return _answer(view, method)


@router.delete(
    "/{method}",
    response_model=ExplanationView,
    summary="Cancel an explanation",
    responses={**ERRORS, **documented(errors.Conflict)},
)
def cancel(
    method: Method, job_id: JobId, tenant_id: SubmitterDep, found: CallerDep, by: ByDep, parts: PartsDep
) -> Response:
    """Cancel at once what is queued; what runs stops at its next step; what has ended stays as it is (409)."""
    with transaction(parts.database) as session:
        ensure_reach(found, views.get(session, tenant_id, job_id).mode)
        explanations.cancel(session, tenant_id, job_id, method)
        deeds.record(session, "explanation.canceled", job_id, tenant_id=tenant_id, **by, method=method)
        view = views.view(session, views.get(session, tenant_id, job_id))
    return _answer(view, method)


def _answer(job: JobView, method: Method, status: int = 200) -> Response:
    found = job.explanations.get(method)
    if found is None:
        raise NotFound(f"No {method} explanation of this job was asked for.")
    headers = {"Location": f"/v1/jobs/{job.id}/explanations/{method}", "Cache-Control": "private, no-cache"}
    return Response(found.model_dump_json(), status, headers=headers, media_type="application/json")
