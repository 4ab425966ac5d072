"""The sweeper: frees what dead workers held, and rings again for what waits. It needs the database alone."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api.chores import Chores, work
from shared import backlog, deliveries, events, explanations, jobs, locks, logs
from shared.backlog import Owed
from shared.db import Database, reading, transaction
from shared.ledger import Expired
from shared.settings import Settings
from shared.storage import open_storage

LOCK = "sweep"
LOCK_ROUNDS = 5  # another sweeper takes over after this many rounds without a sign of life
LEAST_LOCK_S = 5.0
LONGEST_PAUSE_S = 30.0
CHORE_STOP_S = 5.0
EXPIRE: Mapping[str, Callable[[Session, Settings], Expired]] = {
    "jobs": jobs.expire,
    "explanations": explanations.expire,
    "deliveries": deliveries.expire,
}

log = logs.get("api.sweep")


@dataclass
class Rung:
    """For whom a bell was rung last, and when it may be rung again for the very same row (monotonic seconds)."""

    row_id: str = ""
    pause_s: float = 0.0
    again_at: float = 0.0


@dataclass
class Sweeper:
    """One sweeper as the lease in the database knows it, and what it remembers of its bells."""

    holder: str = field(default_factory=lambda: f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(4)}")
    rung: dict[str, Rung] = field(default_factory=dict)
    leads: bool = False  # it held the lease in its last round


def sweep(database: Database, settings: Settings, stopping: threading.Event) -> None:
    """Sweep every `sweep_every_s` until `stopping`; a database that is away is asked again at the same pace."""
    sweeper, beside = Sweeper(), Chores(database, open_storage(settings), settings)
    chores = threading.Thread(target=work, args=(beside, stopping, lambda: sweeper.leads), daemon=True)
    chores.start()
    while not stopping.is_set():
        try:
            once(database, settings, sweeper)
        except SQLAlchemyError as error:
            log.warning("sweep_failed", error=type(error).__name__)
        except Exception:  # of which the next round may be free: nothing else frees what dead workers held
            log.exception("sweep_failed")
        stopping.wait(settings.sweep_every_s)
    chores.join(CHORE_STOP_S)


def once(database: Database, settings: Settings, sweeper: Sweeper) -> bool:
    """One round; False when another sweeper holds the lease. ExceptionGroup: some rows could not be freed."""
    lease_s = max(LEAST_LOCK_S, LOCK_ROUNDS * settings.sweep_every_s)
    with transaction(database) as session:
        sweeper.leads = locks.take(session, LOCK, sweeper.holder, lease_s=lease_s)
    if not sweeper.leads:
        return False
    failed = [error for table in EXPIRE if (error := _free(database, settings, table))]
    events.numbered(database)
    with reading(database) as session:
        owed = backlog.owed(session)
    for bell, what in owed.items():
        _ring(database, settings, sweeper.rung.setdefault(bell, Rung()), bell, what)
    if failed:
        raise ExceptionGroup("some rows were not freed", failed)
    return True


def _free(database: Database, settings: Settings, table: str) -> Exception | None:
    """Free the rows of one table whose holder is gone; what goes wrong there must not keep the others from it."""
    try:
        with transaction(database) as session:
            expired = EXPIRE[table](session, settings)
    except Exception as error:
        return error
    if expired.requeued or expired.exhausted or expired.canceled:
        log.warning("leases_expired", table=table, **{kind: len(ids) for kind, ids in vars(expired).items()})
    return None


def _ring(database: Database, settings: Settings, rung: Rung, bell: str, owed: Owed) -> None:
    """Ring, and wait twice as long before the next time while the same row stays unserved: bells must not pile up."""
    now = time.monotonic()
    if rung.row_id != owed.row_id:
        rung.row_id, rung.pause_s, rung.again_at = owed.row_id, settings.sweep_every_s, 0.0
    if now < rung.again_at:
        return
    for _ in range(owed.rings):
        database.ring(bell)
    rung.again_at = now + rung.pause_s
    rung.pause_s = min(2 * rung.pause_s, LONGEST_PAUSE_S)
    log.info("rung_again", bell=bell, rings=owed.rings, pause_s=rung.pause_s)
