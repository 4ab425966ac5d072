"""Batches over HTTP: submit many files as one, read, list, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import batching
from api.batching import BatchAccepted, Order
from api.bulk import BulkParser, files_of
from api.deps import ByDep, CallerDep, PartsDep, ReaderDep, SubmitterDep, ensure_reach
from api.examples import BATCH, BATCH_ACCEPTED, BATCH_FORM, BATCH_PAGE
from api.idempotency import IdempotencyKey, reply
from api.params import BatchId
from api.problems import documented
from api.uploads import fields_of, reading_form
from shared import batches, deeds, errors
from shared.batches import BatchPage, BatchView
from shared.db import reading, transaction
from shared.idempotency import Answer

router = APIRouter(prefix="/v1/batches", tags=["batches"])

UPLOAD_ERRORS = documented(
    errors.Unauthenticated,
    errors.Forbidden,
    errors.Conflict,
    errors.TooLarge,
    errors.Invalid,
    errors.Throttled,
    errors.Unavailable,
    errors.StorageFull,
)
READ_ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.NotFound, errors.Invalid, errors.Unavailable)
PRIVATE = {"Cache-Control": "private, no-cache"}


@router.post(
    "",
    status_code=202,
    response_model=BatchAccepted,
    summary="Submit many radiographs, or one zip archive of them",
    responses={
        202: {
            "description": "all are durable and queued",
            "content": {"application/json": {"example": BATCH_ACCEPTED}},
        },
        **UPLOAD_ERRORS,
    },
    openapi_extra={"requestBody": BATCH_FORM},
)
async def submit(
    request: Request,
    tenant_id: SubmitterDep,
    caller: CallerDep,
    by: ByDep,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept all files as durable jobs of one batch, or none; the answer is sent after the commit."""
    async with reading_form(request, BulkParser, max_files=parts.settings.batch_files) as form:
        order = Order(caller, by, files_of(form), fields_of(form, batching.Wishes))
        return reply(await run_in_threadpool(batching.accept, parts, order, idempotency_key, _told))


@router.get(
    "",
    response_model=BatchPage,
    summary="List batches, newest first",
    responses={
        200: {"content": {"application/json": {"example": BATCH_PAGE}}},
        **documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable),
    },
)
def page(
    tenant_id: ReaderDep,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """One page of the tenant's batches; follow `next_cursor` until it is null."""
    with reading(parts.database) as session:
        found = batches.page(session, tenant_id, limit=limit, cursor=cursor)
    return Response(found.model_dump_json(), headers=PRIVATE, media_type="application/json")


@router.get(
    "/{batch_id}",
    response_model=BatchView,
    summary="Read a batch: how many of its jobs are in which state",
    responses={200: {"content": {"application/json": {"example": BATCH}}}, **READ_ERRORS},
)
def read(batch_id: BatchId, tenant_id: ReaderDep, parts: PartsDep) -> Response:
    """The batch as it is now; its jobs are listed where `jobs` says."""
    with reading(parts.database) as session:
        found = batches.view(session, batches.get(session, tenant_id, batch_id))
    return Response(found.model_dump_json(), headers=PRIVATE, media_type="application/json")


@router.post(
    "/{batch_id}/cancel",
    response_model=BatchView,
    summary="Cancel every job of a batch that has not ended",
    responses={**READ_ERRORS, **documented(errors.Conflict)},
)
def cancel(batch_id: BatchId, tenant_id: SubmitterDep, caller: CallerDep, by: ByDep, parts: PartsDep) -> Response:
    """Cancel at once what is queued; what runs stops at its next stage, and the batch finishes with the last of it."""
    with transaction(parts.database) as session:
        ensure_reach(caller, batches.get(session, tenant_id, batch_id).mode)
        batch = batches.cancel(session, tenant_id, batch_id)
        deeds.record(session, "batch.canceled", batch_id, tenant_id=tenant_id, **by)
        found = batches.view(session, batch)
    return Response(found.model_dump_json(), headers=PRIVATE, media_type="application/json")


def _told(made: BatchAccepted) -> Answer:
    return Answer(202, {"Location": f"/v1/batches/{made.id}", **PRIVATE}, made.model_dump_json())
