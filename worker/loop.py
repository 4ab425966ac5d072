"""A bell wakes a worker, which works until nothing is left; its pulse also looks for work that no bell announced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy.exc import SQLAlchemyError

from shared import backlog, ledger, logs, workers
from shared.columns import Leased
from shared.db import reading, transaction
from shared.queue import ANALYZE, EXPLAIN
from worker import analysis, explanation
from worker.lease import HAND_BACK_S, LEAVE_S, Lease
from worker.parts import Parts

HANDLERS: Mapping[str, Callable[[Parts, Lease], Callable[[], None]]] = {ANALYZE: analysis.run, EXPLAIN: explanation.run}

JOIN_S = 5.0
PASS_ON_S = 1.0  # so that a bell which finds draining workers only does not go round and round

log = logs.get("worker.loop")


def drain(parts: Parts, bell: str) -> None:
    """Claim and work until no row of this kind waits or the worker stops."""
    with parts.busy:
        _drain(parts, bell)
    if parts.draining.is_set():
        _pass_on(parts, bell)


def _pass_on(parts: Parts, bell: str) -> None:
    """A worker that drains goes on hearing bells, which are meant for others as long as a row waits."""
    time.sleep(PASS_ON_S)
    with reading(parts.database) as session:
        waits = ledger.waiting(session, backlog.TABLES[bell], 1)
    if waits:
        log.info("bell_passed_on", bell=bell)
        parts.database.ring(bell)


def _drain(parts: Parts, bell: str) -> None:
    """One row is stored and settled, in a thread, while the next is worked on; no more than that is ever in work.

    A row that lost a worker before has this process to itself: if it kills this one too, no other row dies with it.
    """
    if bell == ANALYZE:
        assert parts.predictor  # a worker whose networks do not load must not take a job
    with ThreadPoolExecutor(1, thread_name_prefix="settle") as writer:
        settling: Future[None] | None = None
        while leases := _claimed(parts, bell):
            try:
                while leases:
                    alone = leases[0].claim.losses > 0
                    if alone and settling is not None:
                        settling.result()
                    rest = HANDLERS[bell](parts, leases[0])
                    before, settling = settling, writer.submit(_end, rest, leases.pop(0))
                    if before is not None:
                        before.result()
                    if alone:
                        settling.result()
            finally:
                for lease in leases:
                    lease.release()
        if settling is not None:
            settling.result()


def _claimed(parts: Parts, bell: str) -> list[Lease]:
    """The next rows under a lease; none when nothing waits, or when this worker stops or drains."""
    if parts.stop.is_set() or parts.draining.is_set():
        return []
    settings = parts.settings
    with transaction(parts.database) as session:
        claims = ledger.claim_next(session, backlog.TABLES[bell], settings.claim_batch, lease_s=settings.lease_s)
    return [Lease(parts, claim).hold() for claim in claims]


def _end(rest: Callable[[], None], lease: Lease) -> None:
    try:
        rest()
    finally:
        lease.release()


class Pulse:
    """The heartbeat of one worker process; `start` after the fork, `stop` before the end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stopped = threading.Event()
        self._seen: dict[str, str] = {}
        self._said = False
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Say at once that this worker lives, load what the first row would wait for, and go on."""
        self._thread.start()
        if ANALYZE in self._parts.queues:
            threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def stop(self) -> None:
        """Let the work of other threads end or hand it back, and sign off."""
        self._stopped.set()
        self._thread.join(JOIN_S)
        if self._parts.busy.acquire(timeout=HAND_BACK_S + LEAVE_S):
            self._parts.busy.release()
        try:
            with transaction(self._parts.database) as session:
                workers.leave(session, self._parts.worker_id)
        except SQLAlchemyError as error:
            log.warning("not_signed_off", error=type(error).__name__)

    def _warm_up(self) -> None:
        try:
            self._parts.sandbox.start()
            assert self._parts.predictor
            self._say()
        except Exception:
            log.exception("not_loaded")

    def _beat(self) -> None:
        while True:
            try:
                self._say()
                self._look()
            except SQLAlchemyError as error:
                log.warning("no_heartbeat", error=type(error).__name__)
            except Exception:  # a worker that is silent for the rest of its life takes no row that no bell announces
                log.exception("no_heartbeat")
            if self._stopped.wait(self._parts.settings.pulse_s):
                return

    def _say(self) -> None:
        parts = self._parts
        loaded = parts.loaded.runtime.model_dump() if parts.loaded else None
        with transaction(parts.database) as session:
            columns = {"queues": list(parts.queues), "bundle": parts.bundle.identity, "runtime": loaded}
            columns |= {"holds": sorted(parts.held)}
            draining = workers.beat(session, parts.worker_id, first=not self._said, **columns)
        self._said = True
        if draining != parts.draining.is_set():
            (parts.draining.set if draining else parts.draining.clear)()
            parts.rung.set()
            log.warning("drains" if draining else "drains_no_more")

    def _look(self) -> None:
        """Work without a bell on what has waited since the last look: bells get lost, and consumers go deaf."""
        if self._parts.draining.is_set():
            return
        for bell in set(self._parts.queues) & set(HANDLERS):
            waits = self._first(backlog.TABLES[bell])
            if waits is not None and waits == self._seen.get(bell) and not self._parts.busy.locked():
                log.warning("no_bell_rang", queue=bell, row=waits)
                threading.Thread(target=drain, args=(self._parts, bell), name=f"unrung-{bell}", daemon=True).start()
            self._seen[bell] = waits or ""

    def _first(self, table: type[Leased]) -> str | None:
        with reading(self._parts.database) as session:
            return next(iter(ledger.waiting(session, table, 1)), None)
