"""When a queued job will probably have ended: by its place in the queue and the pace of the service."""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from shared import backlog
from shared.backlog import Pace
from shared.models import LIVE, Job
from shared.schemas import JobView, Status

PACE_KEPT_S = 5.0


class Forecast:
    """What one process knows of the pace, measured anew when it is older than PACE_KEPT_S."""

    def __init__(self) -> None:
        self._pace = Pace(None, 0)
        self._until = 0.0

    def placed(self, session: Session, job: Job, view: JobView) -> JobView:
        """The view of a job, with its place and its expected end while it is queued."""
        if view.status is not Status.QUEUED or job.mode != LIVE:
            return view
        ahead = backlog.ahead(session, job)
        if ahead > backlog.AHEAD:
            return view.model_copy(update={"queue_position": f"{backlog.AHEAD}+"})
        return view.model_copy(update={"queue_position": ahead, "eta_s": eta_s(self._known(session), ahead)})

    def _known(self, session: Session) -> Pace:
        if time.monotonic() >= self._until:
            self._pace = backlog.pace(session)
            self._until = time.monotonic() + PACE_KEPT_S
        return self._pace


def eta_s(pace: Pace, ahead: int) -> float | None:
    """Seconds until a job behind `ahead` others has ended; None where nobody works, or no job has ended lately."""
    if pace.service_s is None or not pace.workers:
        return None
    return round(pace.service_s * (ahead / pace.workers + 1), 1)
