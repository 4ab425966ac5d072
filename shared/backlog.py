"""What waits: how much, of which priority, for how long, and who is there to serve it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from statistics import fmean
from typing import get_args

from sqlalchemy import ColumnElement, func, select, tuple_
from sqlalchemy.orm import Session

from shared import ledger, workers
from shared.db import clock
from shared.models import LIVE, Event, Explanation, Job
from shared.queue import ANALYZE, EXPLAIN
from shared.schemas import Priority, Status

OPEN = {Status.QUEUED.value: ledger.QUEUED, Status.RUNNING.value: ledger.RUNNING}
# Not the deliveries: whoever sends them looks for itself, because most become due without a bell.
TABLES: dict[str, type[Job] | type[Explanation]] = {ANALYZE: Job, EXPLAIN: Explanation}
WORKER_SEEN_S = 30.0
AHEAD = 1000  # places in the queue are counted so far
RECENT_EVENTS = 200
RECENT_S = 3600.0
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
    """The backlog now, without rehearsals; reads only rows that have not ended, through their partial indexes."""
    now = clock(session)
    unfinished = {(status, priority): 0 for status in OPEN for priority in PRIORITIES}
    oldest = dict.fromkeys(PRIORITIES, 0.0)
    for status, written in OPEN.items():
        rows = select(Job.priority, func.count(), func.min(Job.created_at)).where(_live(Job), Job.status == written)
        for priority, count, since in session.execute(rows.group_by(Job.priority)):
            unfinished[status, priority] = count
            if status == Status.QUEUED:
                oldest[priority] = max(0.0, (now - since).total_seconds())
    overdue = select(func.count()).where(_live(Job), Job.status == ledger.QUEUED, Job.due_at < now)
    explaining = dict.fromkeys(OPEN, 0)
    for status, written in OPEN.items():
        open_ones = select(func.count()).where(_live(Explanation), Explanation.status == written)
        explaining[status] = session.scalars(open_ones).one()
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
        busy = select(func.count()).where(_live(table), table.status == ledger.RUNNING)
        # A worker that drains takes no more, but still holds what it has: those rows keep nobody else busy.
        draining = [worker.draining for worker in present if bell in worker.queues]
        idle = draining.count(False) - max(0, session.scalars(busy).one() - draining.count(True))
        waiting = ledger.waiting(session, table, max(idle, 0))
        if waiting:
            found[bell] = Owed(waiting[0], len(waiting))
    return found


@dataclass(frozen=True)
class Pace:
    """How fast jobs end: seconds that a worker takes for one (None: none has ended lately), and how many work."""

    service_s: float | None
    workers: int


def pace(session: Session) -> Pace:
    """The pace of the last jobs that were analysed, and of the workers that live now; costs the same at any age."""
    latest = select(Event.job_id, Event.type, Event.mode).order_by(Event.id.desc())
    recent = latest.limit(RECENT_EVENTS).subquery()
    ended = select(Job.started_at, Job.finished_at).join(recent, recent.c.job_id == Job.id)
    analysed = ended.where(recent.c.mode == LIVE, recent.c.type.in_(("job.succeeded", "job.rejected")))
    since = clock(session) - timedelta(seconds=RECENT_S)
    rows = session.execute(analysed.where(Job.finished_at > since)).all()
    taken_s = [(finished - started).total_seconds() for started, finished in rows if started and finished]
    present = [worker for worker in workers.alive(session, WORKER_SEEN_S) if ANALYZE in worker.queues]
    serving = [worker for worker in present if not worker.draining]
    return Pace(fmean(taken_s) if taken_s else None, len(serving))


def ahead(session: Session, job: Job) -> int:
    """How many queued jobs, of all tenants, are served before this one; counted up to one more than AHEAD."""
    earlier = tuple_(Job.due_at, Job.id) < tuple_(job.due_at, job.id)
    found = select(Job.id).where(Job.status == ledger.QUEUED, Job.ready_at.is_not(None), earlier)
    counted = found.order_by(Job.due_at, Job.id).limit(AHEAD + 1).subquery()
    return session.scalars(select(func.count()).select_from(counted)).one()


def _live(table: type[Job] | type[Explanation]) -> ColumnElement[bool]:
    """What is no rehearsal: nobody waits for the others."""
    return table.mode == LIVE
