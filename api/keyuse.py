"""When a key was used last: noted beside the requests, and told to the database once a minute."""

from __future__ import annotations

import asyncio

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from shared import logs, tenants
from shared.db import transaction

log = logs.get("api.keyuse")


async def noting(parts: Parts) -> None:
    """Tell the database once a minute which keys were used, for as long as the process serves."""
    while True:
        await asyncio.sleep(tenants.USE_NOTED_S)
        await note(parts)


async def note(parts: Parts) -> None:
    """Tell it now; a database that is away is told the next time."""
    seen = sorted(parts.used_keys)
    parts.used_keys.clear()
    try:
        await run_in_threadpool(_write, parts, seen)
    except SQLAlchemyError as error:
        parts.used_keys.update(seen)
        log.warning("key_use_not_noted", error=type(error).__name__)


def _write(parts: Parts, seen: list[str]) -> None:
    if seen:
        with transaction(parts.database) as session:
            tenants.note_use(session, seen)
