"""The last step of every row: store what was made, then write how it ended, in one short transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import explanations, jobs, logs
from shared.artifacts import Stored, key_of
from shared.db import is_away, transaction
from shared.errors import (
    BundleError,
    HilumError,
    LeaseLost,
    Misconfigured,
    NotFound,
    StorageFull,
    Unavailable,
)
from shared.ledger import Claim
from shared.models import Job
from shared.schemas import Failure
from worker.artifacts import Files
from worker.parts import Parts

End = Callable[[Session], None]

TRIES = 10
PAUSE_S = 1.0

log = logs.get("worker.settle")


class Holding(Protocol):
    """Whoever holds a row and knows when it is another's."""

    @property
    def lost(self) -> bool:
        """Whether the row is another worker's by now."""


def settle(parts: Parts, lease: Holding, end: End) -> None:
    """Write how a row ended, unless it is another worker's by now; a database that restarts is waited for."""
    for left in reversed(range(TRIES)):
        try:
            with transaction(parts.database) as session:
                return end(session)
        except LeaseLost:
            return log.info("lease_lost")
        except SQLAlchemyError as error:
            if not left or lease.lost or not is_away(error):
                raise
            log.warning("not_settled_yet", error=type(error).__name__)
            time.sleep(PAUSE_S)


def unless_canceled(claim: Claim, end: End) -> End:
    """`end`, or the cancel that the row's owner asked for meanwhile: who was told that it is canceled, finds it so.

    The lease learns of a cancel when it is renewed, which may be later than the last stage of the work.
    """
    table, life = claim.table, jobs if claim.table is Job else explanations
    mine = select(table.cancel_requested).where(table.id == claim.id, table.lease_token == claim.token)

    def decided(session: Session) -> None:
        canceled = session.scalars(mine.with_for_update()).first()
        life.stop(session, claim) if canceled else end(session)

    return decided


def mends_itself(error: Exception) -> bool:
    """Whether the store or the database was away: the row is to be tried again, and has not failed."""
    return isinstance(error, Unavailable | StorageFull) or is_away(error)


def store(parts: Parts, tenant_id: str, job_id: str, attempt: int, files: Files) -> list[Stored]:
    """Put files under keys of this attempt; StorageFull, Unavailable."""
    stored = []
    for name, (data, media_type) in files.items():
        key = key_of(tenant_id, job_id, attempt, name)
        parts.storage.put(key, data, media_type)
        stored.append(Stored(name, key, media_type, len(data)))
    return stored


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
    log.exception("unforeseen", exc_info=error)
    return Failure(code="internal_error", detail=f"An error that nobody foresaw: {type(error).__name__}.")
