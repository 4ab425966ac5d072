"""What the sweeper does beside its rounds, because it waits for the storage: rehearsals and retention.

A store that is slow or away must not keep the sweeper from freeing what dead workers held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from shared import deliveries, idempotency, logs, purge, rehearsal
from shared.db import Database, transaction
from shared.errors import HilumError
from shared.settings import Settings
from shared.storage import Storage

RETIRE_EVERY_S = 60.0  # and at once again while something was past its time

log = logs.get("api.chores")


@dataclass
class Chores:
    """What the chores of one sweeper need, and when they look again for what is past its time (monotonic seconds)."""

    database: Database
    storage: Storage
    settings: Settings
    retire_at: float = 0.0


def work(chores: Chores, stopping: threading.Event, leads: Callable[[], bool]) -> None:
    """Do the chores every `sweep_every_s` until `stopping`, while this sweeper is the one that works."""
    while not stopping.is_set():
        if leads():
            once(chores)
        stopping.wait(chores.settings.sweep_every_s)


def once(chores: Chores) -> None:
    """Play the test jobs that wait, cancel what is owed to disabled webhooks, purge what is old; never raises."""
    _try(_rehearse, chores)
    _try(_cancel, chores)
    if time.monotonic() >= chores.retire_at:
        _try(_forget, chores)
        _try(_retire, chores)


def _rehearse(chores: Chores) -> None:
    played = rehearsal.play(chores.database, chores.storage)
    if played:
        log.info("rehearsed", rows=played)


def _cancel(chores: Chores) -> None:
    """What had piled up when a webhook was disabled, in transactions for which nobody waits long."""
    canceled = 1
    while canceled:
        with transaction(chores.database) as session:
            canceled = deliveries.cancel_disabled(session)


def _forget(chores: Chores) -> None:
    """The answers to idempotency keys that were kept for as long as was promised."""
    forgotten = idempotency.EXPIRE_AT_ONCE
    while forgotten == idempotency.EXPIRE_AT_ONCE:
        with transaction(chores.database) as session:
            forgotten = idempotency.expire(session, chores.settings)


def _retire(chores: Chores) -> None:
    purged = purge.retire(chores.database, chores.storage, chores.settings)
    if purged.jobs or purged.events:
        log.info("purged", **vars(purged))
    else:
        chores.retire_at = time.monotonic() + RETIRE_EVERY_S


def _try(act: Callable[[Chores], None], chores: Chores) -> None:
    """Nothing that goes wrong here may end the thread: nobody would start it again."""
    try:
        act(chores)
    except (SQLAlchemyError, HilumError) as error:
        log.warning("chore_failed", chore=act.__name__.strip("_"), error=type(error).__name__)
    except Exception:
        log.exception("chore_failed", chore=act.__name__.strip("_"))
