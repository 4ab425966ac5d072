"""One waiter per process: while anyone waits for a job, one query per tick asks for all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from shared import logs, metrics
from shared.schemas import Status

Seen = dict[str, tuple[int, Status]]

log = logs.get("api.notifier")


@dataclass(eq=False)
class Waiter:
    """One request that waits: for any version but `version`, or for the end of the job when that is None."""

    version: int | None
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wants(self, version: int, status: Status) -> bool:
        """Whether this state of the row ends the wait."""
        return status.terminal if self.version is None else version != self.version


class Notifier:
    """The waiting requests of one event loop; `read` answers (version, status) by job id, from the database."""

    def __init__(self, read: Callable[[Collection[str]], Seen], *, tick_s: float) -> None:
        self._read = read
        self._tick_s = tick_s
        self._waiting: dict[str, set[Waiter]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, job_id: str, *, version: int | None, timeout_s: float) -> bool:
        """Wait until the job leaves `version` (None: until it ends); False when `timeout_s` ran out first."""
        if self._closed or timeout_s <= 0:
            return False
        waiter = Waiter(version)
        self._waiting.setdefault(job_id, set()).add(waiter)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            with metrics.WAITING.track_inprogress():
                await asyncio.wait_for(waiter.woken.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._forget(job_id, waiter)
        return True

    async def close(self) -> None:
        """Wake whoever still waits, let nobody wait any more, and stop asking."""
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.woken.set()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _look(self) -> None:
        while self._waiting:
            asked = list(self._waiting)
            try:
                self._wake(asked, await run_in_threadpool(self._read, asked))
            except Exception as error:
                # The database is away for now; those who wait keep their own deadlines.
                log.warning("notifier_query_failed", error=type(error).__name__)
            await asyncio.sleep(self._tick_s)

    def _wake(self, asked: list[str], seen: Seen) -> None:
        for job_id in asked:
            state = seen.get(job_id)
            for waiter in self._waiting.get(job_id, ()):
                # A row that is gone is news as well: who waits reads it and finds a 404.
                if state is None or waiter.wants(*state):
                    waiter.woken.set()

    def _forget(self, job_id: str, waiter: Waiter) -> None:
        waiters = self._waiting.get(job_id, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiting.pop(job_id, None)
