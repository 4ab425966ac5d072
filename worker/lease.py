"""The lease on one row while it is worked on: renewed by a thread, which also learns what the worker must know."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from shared import explanations, jobs, ledger, logs
from shared.db import transaction
from shared.errors import LeaseLost
from shared.ledger import Claim
from shared.models import Job
from worker.parts import Parts
from worker.settle import unless_canceled

TICK_S = 0.1
STAGE_EVERY_S = 0.25  # a stage that passes faster is not worth a commit
HAND_BACK_S = 3.0  # how long a worker that was asked to stop goes on with the row it has
LEAVE_S = 3.0  # and how long it then waits for its own pipeline before it ends without it
OVERDUE_EXIT = 75

log = logs.get("worker.lease")


class Canceled(Exception):
    """The owner of the row wants no answer any more."""


class Lease:
    """Holds a claimed row; `report` is called by the work, everything else happens in a thread.

    A row that takes longer than `job_deadline_s` ends this process: no other way stops native code, and the ledger
    counts it as a loss. A worker that is asked to stop hands the row back after HAND_BACK_S.
    """

    def __init__(self, parts: Parts, claim: Claim) -> None:
        self.claim = claim
        self._parts = parts
        self._stage: str | None = None
        self._done = threading.Event()
        self._canceled = self._lost = False
        self._began: float | None = None
        self._thread = threading.Thread(target=self._hold, name=f"lease-{claim.id}", daemon=True)

    def hold(self) -> Self:
        """Begin to renew; whoever calls this sees to it that `release` follows, or the row is held for ever."""
        self._parts.held.add(self.claim.id)
        self._thread.start()
        return self

    def release(self) -> None:
        """Renew no more: the row has ended, or may be taken by another worker once its lease runs out."""
        self._done.set()
        self._thread.join()
        self._parts.held.discard(self.claim.id)

    def begin(self) -> None:
        """The work on this row begins now, and with it its deadline."""
        self._began = time.monotonic()

    @property
    def lost(self) -> bool:
        """Whether the row is another worker's by now."""
        return self._lost

    def report(self, stage: str) -> None:
        """Enter a stage of the work; Canceled or LeaseLost when there is no reason to go on."""
        if self._lost:
            raise LeaseLost
        if self._canceled:
            raise Canceled
        self._stage = stage

    def _hold(self) -> None:
        renewed, written, stopping = time.monotonic(), None, None
        settings = self._parts.settings
        while not self._done.wait(TICK_S) and not self._lost:
            now, stage = time.monotonic(), self._stage
            if self._parts.stop.is_set() and stopping is None:
                stopping = now
            if stopping is not None and now - stopping > HAND_BACK_S:
                return self._hand_back()
            if self._began is not None and now - self._began > settings.job_deadline_s:
                self._end_process("job_deadline", OVERDUE_EXIT)
            news = stage != written and now - renewed >= STAGE_EVERY_S
            if (news or now - renewed >= settings.renew_s) and self._tried(self._renew, stage):
                renewed, written = now, stage
            elif now - renewed > settings.lease_s:
                self._lost = True
        return None

    def _tried(self, act: Callable[..., None], *arguments: Any) -> bool:
        """Whether `act` went through; a database that is away is asked again until the lease has run out."""
        try:
            act(*arguments)
        except LeaseLost:
            self._lost = True
        except SQLAlchemyError as error:
            log.warning("lease_not_renewed", error=type(error).__name__)
            return False
        return True

    def _renew(self, stage: str | None) -> None:
        columns = {"stage": stage} if stage and self.claim.table is Job else {}
        with transaction(self._parts.database) as session:
            if ledger.renew(session, self.claim, lease_s=self._parts.settings.lease_s, **columns):
                self._canceled = True

    def _hand_back(self) -> None:
        """Give the row to another worker; what the pipeline here still finds is refused by the ledger."""
        self._tried(hand_back, self._parts, self.claim)
        self._lost = True
        if not self._done.wait(LEAVE_S):
            self._end_process("stopped_within_a_job", 0)

    def _end_process(self, why: str, code: int) -> None:
        log.error(why, row=self.claim.id, attempt=self.claim.attempt)
        os._exit(code)


def hand_back(parts: Parts, claim: Claim) -> None:
    """Queue a row again in good order, unless it was canceled. LeaseLost."""
    life = jobs if claim.table is Job else explanations
    with transaction(parts.database) as session:
        unless_canceled(claim, partial(life.hand_back, claim=claim))(session)
    log.info("handed_back", row=claim.id)
