"""What happens to jobs, as it happens: a stream (server-sent events), or a long poll where the client wants JSON."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Query, Response
from sqlalchemy.exc import SQLAlchemyError
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from api import accept
from api.deps import BearerDep, Parts, PartsDep, ReaderDep, known
from api.examples import EVENTS, STREAM
from api.params import JobId, WaitSeconds
from api.problems import documented
from shared import errors, events, ids, logs, views
from shared.db import clock, reading
from shared.errors import HilumError, Invalid
from shared.events import Numbered, Wanted
from shared.schemas import EventPage

router = APIRouter(prefix="/v1", tags=["events"])

SSE, JSON = "text/event-stream", "application/json"
START = "start"
CHECK_S = 10.0  # how often a stream asks whether its key is still good
SEND_S = 30.0  # a reader that takes nothing for so long is left
RETRY_MS = 1000  # how soon a browser comes back
MOST = 500
HEARTBEAT = ServerSentEvent(comment="still here", sep="\n").encode()

ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable)
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EventPage,
        "content": {SSE: {"schema": {"type": "string"}, "example": STREAM}, JSON: {"example": EVENTS}},
        "description": "a stream that goes on, or one page",
    },
    **ERRORS,
}
STREAM_OF_JOB: dict[int | str, dict[str, Any]] = {
    204: {"description": "nothing more will happen to the job: come back no more"},
    **documented(errors.NotFound),
}

log = logs.get("api.events")


@dataclass(frozen=True)
class Asked:
    """What the client wants of events, and since when: after the event of an id, `start`, or (None) not said."""

    json: bool
    after: str | None
    types: frozenset[str]
    wait_s: float
    limit: int


def _event_id(value: str) -> str:
    try:
        ids.made_at(value)
    except ValueError as error:
        raise Invalid("That is not the id of an event.", code="invalid_event_id") from error
    if not value.startswith("evt_"):
        raise Invalid("That is the id of something else than an event.", code="invalid_event_id")
    return value


def _types(csv: str) -> frozenset[str]:
    wanted = frozenset(part.strip() for part in csv.split(",") if part.strip())
    if strange := wanted.difference(events.TOLD):
        raise Invalid(f"There are no events of type {', '.join(sorted(strange))}; there are {', '.join(events.TOLD)}.")
    return wanted


async def _asked(
    accepts: Annotated[str, Header(alias="Accept", include_in_schema=False)] = "",
    last_event_id: Annotated[str, Header(description="go on after this event; goes before `after`")] = "",
    after: Annotated[str, Query(description="an event id, or `start`: the oldest event that is kept")] = "",
    types: Annotated[str, Query(max_length=256, description="comma-separated; else all")] = "",
    wait: WaitSeconds = 0,
    limit: Annotated[int, Query(ge=1, le=MOST, description="JSON: events in one answer")] = 100,
) -> Asked:
    since = last_event_id or after or None
    return Asked(
        json=accept.quality(accepts, JSON) > accept.quality(accepts, SSE),
        after=since if since in (None, START) else _event_id(since),
        types=_types(types),
        wait_s=wait,
        limit=limit,
    )


AskedDep = Annotated[Asked, Depends(_asked)]


@router.get("/events", summary="Hear what happens to all jobs", response_model=None, responses=ANSWERS)
async def of_tenant(tenant_id: ReaderDep, credentials: BearerDep, parts: PartsDep, asked: AskedDep) -> Response:
    """The tenant's events in one order for everyone; a stream that names no event to go on after begins now."""
    return await _answer(parts, credentials, Wanted(tenant_id, None, asked.types), asked)


@router.get(
    "/jobs/{job_id}/events",
    summary="Hear what happens to one job",
    response_model=None,
    responses={**ANSWERS, **STREAM_OF_JOB},
)
async def of_job(
    job_id: JobId, tenant_id: ReaderDep, credentials: BearerDep, parts: PartsDep, asked: AskedDep
) -> Response:
    """The job's events from its first on; a stream ends when the job and its explanations have ended."""
    return await _answer(parts, credentials, Wanted(tenant_id, job_id, asked.types), asked)


class _Opening(NamedTuple):
    """What there is when a reader comes: its place, the newest event's id, the first events, whether more can come."""

    place: int
    newest: str
    rows: list[Numbered]
    over: bool


class Stream(EventSourceResponse):
    """A stream that leaves a reader who takes nothing for SEND_S: its buffers must not be held for ever."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until one of the two ends."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("reader_left", why="it took nothing")


async def _answer(parts: Parts, credentials: BearerDep, wanted: Wanted, asked: Asked) -> Response:
    opening = await run_in_threadpool(_open, parts, wanted, asked)
    if asked.json:
        return await _page(parts, wanted, asked, opening)
    if opening.over and not opening.rows:
        return Response(status_code=204)
    begins = opening.newest if _begins_now(wanted, asked) else asked.after
    told = _stream(parts, credentials, wanted, opening, begins)
    return Stream(told, headers={"Cache-Control": "no-store"}, ping=0, send_timeout=SEND_S, sep="\n")


def _open(parts: Parts, wanted: Wanted, asked: Asked) -> _Opening:
    """Find the reader's place; NotFound for a job that is not the tenant's."""
    # For a stream that goes on, the broadcast numbers what is new.
    end = events.numbered(parts.database) if asked.json or _begins_now(wanted, asked) else 0
    with reading(parts.database) as session:
        over = False
        if wanted.job_id is not None:
            views.version(session, wanted.tenant_id, wanted.job_id)
            over = bool(events.over(session, [wanted.job_id]))
        newest = events.newest(session, wanted.tenant_id)
        if asked.after is not None and asked.after != START:
            place = events.place(session, wanted.tenant_id, asked.after)
        else:
            place = max(end, newest[1] if newest else 0) if _begins_now(wanted, asked) else 0
        rows = events.page(session, wanted, place, asked.limit) if asked.json or over else []
        # Where nothing has happened yet, a moment stands for the event.
        newest_id = newest[0] if newest else ids.earliest("evt", clock(session))
    return _Opening(place, newest_id, rows, over)


def _begins_now(wanted: Wanted, asked: Asked) -> bool:
    return asked.after is None and wanted.job_id is None and not asked.json


async def _page(parts: Parts, wanted: Wanted, asked: Asked, opening: _Opening) -> Response:
    found, ended = [row.view for row in opening.rows], opening.over
    full = len(found) == asked.limit
    wait_s = min(asked.wait_s, parts.settings.max_wait_s)
    if not found and not ended and wait_s > 0:
        with parts.broadcast.listening(wanted, opening.place) as listener, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not (found or listener.ended or parts.broadcast.closed):
                    found = [told.view for told in await parts.broadcast.next(listener)]
            full, ended = len(found) > asked.limit, listener.ended
    shown = found[: asked.limit]
    page = EventPage(events=shown, next_after=shown[-1].id if shown else opening.newest, ended=ended and not full)
    return Response(page.model_dump_json(), headers={"Cache-Control": "no-store"}, media_type=JSON)


async def _stream(
    parts: Parts, credentials: BearerDep, wanted: Wanted, opening: _Opening, begins: str | None
) -> AsyncIterator[bytes]:
    """The stream of one reader, for as long as its key may read; it begins by naming where it `begins`.

    By the standard an empty block without an id makes a reader forget the last one, and it would come back to nowhere.
    """
    clock_s = asyncio.get_running_loop().time
    checked_at = clock_s()
    yield ServerSentEvent(id=begins, retry=RETRY_MS, sep="\n").encode()
    with parts.broadcast.listening(wanted, opening.place) as listener:
        listener.over = opening.over
        while not listener.ended and not parts.broadcast.closed:
            try:
                found = await parts.broadcast.next(listener)
            except SQLAlchemyError as error:
                log.warning("stream_broken", error=type(error).__name__)
                return
            if found:
                yield b"".join(told.chunk for told in found)
            elif not listener.ended and not parts.broadcast.closed:
                yield HEARTBEAT
            if clock_s() - checked_at >= CHECK_S:
                if not await _may_read(parts, credentials, wanted.tenant_id):
                    return
                checked_at = clock_s()


async def _may_read(parts: Parts, credentials: BearerDep, tenant_id: str) -> bool:
    """Whether the key that opened a stream is still good for it; while the database is away, what was known holds."""
    assert credentials is not None
    try:
        found = await known(parts, credentials)
    except HilumError:
        return False
    except SQLAlchemyError:
        return True
    return found.tenant_id == tenant_id and "read" in found.scopes
