"""What waits: how much, of which priority, for how long, and who is there to serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared import ledger, workers
from shared.columns import Leased
from shared.db import clock
from shared.models import Explanation, Job
from shared.queue import ANALYZE, EXPLAIN
from shared.schemas import Priority, Status

OPEN = {Status.QUEUED.value: ledger.QUEUED, Status.RUNNING.value: ledger.RUNNING}
# Not the deliveries: whoever sends them looks for itself, because most become due without a bell.
TABLES: dict[str, type[Leased]] = {ANALYZE: Job, EXPLAIN: Explanation}
WORKER_SEEN_S = 30.0
PRIORITIES: tuple[str, ...] = get_args(Priority)


@dataclass(frozen=True)
class Backlog:
    """Unfinished jobs by (status, priority), age in seconds of the oldest queued job by priority, and the rest."""

    unfinished: dict[tuple[str, str], int]
    oldest_s: dict[str, float]
    overdue: int
    explanations: dict[str, int]
    workers: int


def measure(session: Session) -> Backlog:
    """The backlog now; reads only rows that have not ended, through their partial indexes."""
    now = clock(session)
    unfinished = {(status, priority): 0 for status in OPEN for priority in PRIORITIES}
    oldest = dict.fromkeys(PRIORITIES, 0.0)
    for status, written in OPEN.items():
        rows = select(Job.priority, func.count(), func.min(Job.created_at)).where(Job.status == written)
        for priority, count, since in session.execute(rows.group_by(Job.priority)):
            unfinished[status, priority] = count
            if status == Status.QUEUED:
                oldest[priority] = max(0.0, (now - since).total_seconds())
    overdue = select(func.count()).where(Job.status == ledger.QUEUED, Job.due_at < now)
    explaining = dict.fromkeys(OPEN, 0)
    for status, written in OPEN.items():
        explaining[status] = session.scalars(select(func.count()).where(Explanation.status == written)).one()
    return Backlog(
        unfinished, oldest, session.scalars(overdue).one(), explaining, len(workers.alive(session, WORKER_SEEN_S))
    )


@dataclass(frozen=True)
class Owed:
    """A bell that should have been heard: the row that has waited longest, and how many rings could find a worker."""

    row_id: str
    rings: int


def owed(session: Session) -> dict[str, Owed]:
    """By bell, what waits although workers stand idle; never more rings than idle workers, however many rows wait."""
    present = workers.alive(session, WORKER_SEEN_S)
    found = {}
    for bell, table in TABLES.items():
        busy = select(func.count()).where(table.status == ledger.RUNNING)
        idle = sum(bell in worker.queues for worker in present) - session.scalars(busy).one()
        waiting = ledger.waiting(session, table, max(idle, 0))
        if waiting:
            found[bell] = Owed(waiting[0], len(waiting))
    return found
