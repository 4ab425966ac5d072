"""The Idempotency-Key of a request: what it covers, who goes ahead, and what is answered to the same request again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Header, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.deps import Caller
from shared import idempotency, logs
from shared.db import Database, together, transaction
from shared.idempotency import Answer, Claim, Keyed

LOCK_S = 15.0  # beyond what a request may take: one that shows no answer by then was lost
STORED_BYTES_PER_S = 2**21  # slower than any store that works
REPLAYED = {"Idempotent-Replayed": "true"}

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="yours, unlike for every request: the same request again is answered as the first one was",
    ),
]

T = TypeVar("T")

log = logs.get("api.idempotency")


def keyed(caller: Caller, key: str, operation: str, content: str, fields: Mapping[str, Any]) -> Keyed:
    """The request to `operation` under its key: `content` is the sha256 of what was uploaded, `fields` all the rest.

    The bytes of a form are no part of it, for every client draws another boundary.
    """
    said = json.dumps([operation, caller.mode, content, fields], sort_keys=True, separators=(",", ":"))
    return Keyed(caller.tenant_id, key, hashlib.sha256(said.encode()).hexdigest())


def once(database: Database, request: Keyed | None, act: Callable[[Claim | None], T], *, takes_s: float) -> T | Answer:
    """What `act` returns, or what the first request with this key was answered; an error of `act` frees the key.

    `act` must call `shared.idempotency.note` in its transaction. When it leaves the answer open, because its client
    waits, the caller owes it through `answered`. After `takes_s`, which the whole request may take, and LOCK_S more,
    the same request may go ahead in its place. Raises Invalid for another request, Conflict in flight.
    """
    if request is None:
        return act(None)
    claim = partial(idempotency.claim, request=request, lock_s=LOCK_S + takes_s)
    found = together(database, claim, waits=True)  # for who claims the same key at this moment
    if isinstance(found, Answer):
        return replace(found, headers=found.headers | REPLAYED)
    try:
        return act(found)
    except Exception:
        _release(database, found)
        raise


async def answered(database: Database, claim: Claim | None, answer: Awaitable[Answer]) -> Answer:
    """`answer`, stored for `claim` before it is sent; after an error the next request with the key goes on."""
    if claim is None:
        return await answer
    try:
        found = await answer
        await run_in_threadpool(_store, database, claim, found)
    except Exception:
        await run_in_threadpool(_release, database, claim)
        raise
    return found


def reply(answer: Answer) -> Response:
    """`answer` as a response."""
    return Response(answer.body, answer.status, headers=answer.headers, media_type="application/json")


def _store(database: Database, claim: Claim, answer: Answer) -> None:
    with transaction(database) as session:
        idempotency.note(session, claim, answer)


def _release(database: Database, claim: Claim) -> None:
    """Never raises: the error that made the request fail is the one to tell, and the claim ends by itself."""
    try:
        with transaction(database) as session:
            idempotency.release(session, claim)
    except SQLAlchemyError as error:
        log.warning("claim_not_released", error=type(error).__name__)
