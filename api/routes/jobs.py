"""Jobs over HTTP: submit, read, list, wait, cancel, and what they left in storage."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from api import idempotency, intake, waiting
from api.deps import ByDep, Caller, CallerDep, Parts, PartsDep, ReaderDep, SubmitterDep, ensure_reach
from api.examples import JOB, PAGE, UPLOAD_FORM
from api.idempotency import IdempotencyKey
from api.params import ArtifactName, JobId, WaitSeconds
from api.problems import documented
from api.uploads import fields_of, file_of, reading_form
from api.waiting import Versioned
from shared import deeds, errors, jobs, views
from shared.db import reading, transaction
from shared.deeds import By
from shared.idempotency import Answer
from shared.schemas import JobPage, JobView, Mode, Priority, Status

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

UPLOAD_ERRORS = documented(
    errors.Unauthenticated,
    errors.Forbidden,
    errors.Conflict,
    errors.TooLarge,
    errors.UnsupportedType,
    errors.Invalid,
    errors.EmptyFile,
    errors.Unavailable,
    errors.StorageFull,
    errors.BundleError,
)
READ_ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.NotFound, errors.Invalid, errors.Unavailable)

PRIVATE = "private, no-cache"

IfNoneMatch = Annotated[str | None, Header(description="the ETag you hold; 304 while it is still true")]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    summary="Submit a radiograph",
    responses={
        200: {"model": JobView, "description": "`reuse=true`: a job of the same file that there was already"},
        201: {"model": JobView, "description": "`Prefer: wait` was met: the job has ended"},
        202: {"description": "durable and queued", "content": {"application/json": {"example": JOB}}},
        **UPLOAD_ERRORS,
    },
    openapi_extra={"requestBody": UPLOAD_FORM},
)
async def submit(
    request: Request,
    tenant_id: SubmitterDep,
    caller: CallerDep,
    by: ByDep,
    parts: PartsDep,
    prefer: Annotated[str | None, Header(description="`wait=N`: answer with the ended job within N s")] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept one image as a durable job; the answer is sent after the commit."""
    wait_s = waiting.preferred_s(prefer, parts.settings.max_wait_s)
    async with reading_form(request) as form:
        made = await run_in_threadpool(_accept, parts, caller, by, form, idempotency_key, wait_s)
    if isinstance(made, Answer):
        return idempotency.reply(made)
    if wait_s is None:
        return idempotency.reply(_accepted(made))
    ended = _ended(parts, tenant_id, made, wait_s)
    return idempotency.reply(await idempotency.answered(parts.database, made.claim, ended))


@router.get(
    "/{job_id}",
    response_model=JobView,
    summary="Read a job, or wait for it",
    responses={
        200: {"content": {"application/json": {"example": JOB}}},
        304: {"description": "unchanged: the ETag in `If-None-Match` is still true"},
        **READ_ERRORS,
    },
)
async def read(
    job_id: JobId,
    tenant_id: ReaderDep,
    parts: PartsDep,
    wait: WaitSeconds = 0,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The job; `wait` holds the answer until it ends or, with `If-None-Match`, until anything of it changes."""
    wait_s = min(wait, parts.settings.max_wait_s)
    if if_none_match is not None or wait_s > 0:
        version, status = await run_in_threadpool(waiting.version, parts, tenant_id, job_id)
        if waiting.matches(if_none_match, waiting.etag_of(version)):
            if not await parts.notifier.wait(job_id, version=version, timeout_s=wait_s):
                return _unchanged(waiting.etag_of(version))
        elif if_none_match is None and not status.terminal:
            await parts.notifier.wait(job_id, version=None, timeout_s=wait_s)
    found = await run_in_threadpool(waiting.read, parts, tenant_id, job_id)
    return _unchanged(found.etag) if waiting.matches(if_none_match, found.etag) else answer(found)


def _utc(moment: datetime) -> datetime:
    if not 1970 <= moment.year <= 9998:
        raise ValueError("a year from 1970 to 9998")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_utc)]
Text = Annotated[str, Query(max_length=128, pattern=intake.PRINTABLE)]


@router.get(
    "",
    response_model=JobPage,
    summary="List jobs, newest first",
    responses={
        200: {"content": {"application/json": {"example": PAGE}}},
        **documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable),
    },
)
def page(
    tenant_id: ReaderDep,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Text | None = None,
    status: Status | None = None,
    top_class: Text | None = None,
    priority: Priority | None = None,
    external_id: Text | None = None,
    batch: Text | None = None,
    mode: Mode | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
) -> Response:
    """One page of the tenant's jobs; follow `next_cursor` until it is null."""
    with reading(parts.database) as session:
        found = views.page(
            session,
            tenant_id,
            limit=limit,
            cursor=cursor,
            status=status,
            top_class=top_class,
            priority=priority,
            external_id=external_id,
            batch=batch,
            mode=mode,
            created_after=created_after,
            created_before=created_before,
        )
    return Response(found.model_dump_json(), media_type="application/json")


@router.post(
    "/{job_id}/cancel",
    response_model=JobView,
    summary="Cancel a job",
    responses={**READ_ERRORS, **documented(errors.Conflict)},
)
def cancel(job_id: JobId, tenant_id: SubmitterDep, found: CallerDep, by: ByDep, parts: PartsDep) -> Response:
    """Cancel at once what is queued; what runs stops at its next stage (then the answer still says `running`)."""
    with transaction(parts.database) as session:
        ensure_reach(found, views.get(session, tenant_id, job_id).mode)
        job = jobs.cancel(session, tenant_id, job_id)
        deeds.record(session, "job.canceled", job_id, tenant_id=tenant_id, **by)
        canceled = Versioned(views.view(session, job), job.version)
    return answer(canceled)


@router.get(
    "/{job_id}/artifacts/{name}",
    summary="Fetch what the analysis left: input.png, lungs.png, gradcam.png, ...",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}, "image/jpeg": {}}, "description": "the bytes"},
        **READ_ERRORS,
    },
)
def artifact(job_id: JobId, name: ArtifactName, tenant_id: ReaderDep, parts: PartsDep) -> Response:
    """The bytes of one artefact, under the media type that was stored with it."""
    with reading(parts.database) as session:
        found = views.artifact(session, tenant_id, job_id, name)
        key, media_type = found.key, found.media_type
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": PRIVATE}
    return Response(parts.storage.get(key), media_type=media_type, headers=headers)


def _accept(
    parts: Parts, caller: Caller, by: By, form: FormData, key: str | None, wait_s: float | None
) -> intake.Accepted | Answer:
    """The job that the form makes or finds, or what the same request was answered before."""
    file, wishes, request = file_of(form).file, fields_of(form, intake.Wishes), None
    order = intake.Order(caller, by, wishes, intake.inspect(file, parts.settings.max_upload_bytes))
    if key is not None:
        fields = wishes.model_dump(mode="json")
        request = idempotency.keyed(caller, key, "POST /v1/jobs", order.upload.sha256, fields)
    act = partial(intake.accept, parts, order, tell=_accepted if wait_s is None else None)
    takes_s = (wait_s or 0.0) + order.upload.size / idempotency.STORED_BYTES_PER_S
    return idempotency.once(parts.database, request, act, takes_s=takes_s)


def _accepted(made: intake.Accepted) -> Answer:
    """What is answered to who does not wait."""
    return said(made.job, 200 if made.reused else 202, **_named(made))


async def _ended(parts: Parts, tenant_id: str, made: intake.Accepted, wait_s: float) -> Answer:
    """What is answered to who waits."""
    found = await waiting.ended(parts, tenant_id, made.job.view.id, wait_s)
    status = 200 if made.reused else 201 if found.view.status.terminal else 202
    return said(found, status, **_named(made), **{"Preference-Applied": f"wait={wait_s:g}"})


def _named(made: intake.Accepted) -> dict[str, str]:
    reused = {"Hilum-Reused": "true"} if made.reused else {}
    return {"Location": f"/v1/jobs/{made.job.view.id}", **reused}


def said(found: Versioned, status: int = 200, **headers: str) -> Answer:
    """A job as JSON with its entity tag."""
    sent = {"ETag": found.etag, "Cache-Control": PRIVATE, **headers}
    return Answer(status, sent, found.view.model_dump_json())


def _unchanged(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": PRIVATE})


def answer(found: Versioned) -> Response:
    """A job as a response."""
    return idempotency.reply(said(found))
