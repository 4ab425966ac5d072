"""Purging over HTTP: an admin key has one job that ended, and all that belongs to it, deleted at once."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.deps import AdminDep, ByDep, CallerDep, PartsDep, ensure_reach
from api.params import JobId
from api.problems import documented
from shared import errors, purge, views
from shared.db import reading
from shared.models import TEST

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.delete(
    "/{job_id}",
    status_code=204,
    response_class=Response,
    summary="Purge a job",
    responses={
        202: {"description": "its rows are gone; the storage did not answer, and its files will be collected"},
        204: {"description": "it is gone, with its files, events and explanations"},
        **documented(
            errors.Unauthenticated,
            errors.Forbidden,
            errors.NotFound,
            errors.Conflict,
            errors.Invalid,
            errors.Unavailable,
        ),
    },
)
def purge_job(job_id: JobId, tenant_id: AdminDep, found: CallerDep, by: ByDep, parts: PartsDep) -> Response:
    """Delete a job that has ended, and all that belongs to it; only the audit log remembers it. 409 before its end."""
    if found.mode == TEST:
        with reading(parts.database) as session:
            ensure_reach(found, views.get(session, tenant_id, job_id).mode)
    purged = purge.purge_job(parts.database, parts.storage, tenant_id, job_id, by=by)
    return Response(status_code=202 if purged.left else 204)
