"""The events of all tenants as one process hears them: one query per tick, however many listen.

A listener holds a place in the order of events and a small buffer; no thread, and no connection to the database. What
has happened before it came, or while it read too slowly for its buffer, it reads from the database up to where the
buffer goes on. Every event it wants thus comes once and in order, whatever was committed when.

Where an event cannot be read or told, every listener reads its own for itself, and only those whom it concerns fail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from shared import events, logs, metrics
from shared.db import Database, reading
from shared.events import Numbered, Wanted
from shared.schemas import EventView

ROOM = 256  # events kept for a listener that does not keep up
READERS = 4  # listeners that read from the database at a time: the requests need its connections too
HEARTBEAT_S = 10.0  # a listener who is told nothing is woken after this
SLOWLY_S = 1.0  # how often jobs are asked whether they are over, and listeners looked through for a heartbeat

log = logs.get("api.stream")


class Told(NamedTuple):
    """An event, and the bytes of it in a stream, made once for all who listen."""

    seq: int
    view: EventView
    chunk: bytes


class _News(NamedTuple):
    """What one tick found: where the order ends, the next events, and which jobs are over."""

    tail: int
    rows: list[Numbered]
    over: set[str]
    unread: bool = False  # one of the events cannot be read: each listener looks for its own


@dataclass(eq=False, slots=True)
class Listener:
    """One reader; everything up to `place` has been given to it or is none of what it wants."""

    wanted: Wanted
    place: int
    gap: bool = True  # between its place and its buffer there may be events that only the database has
    over: bool = False  # nothing more will be told of its job
    beat_at: float = math.inf  # on the loop's clock
    buffer: list[Told] = field(default_factory=list)
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether it has been given everything that there will ever be."""
        return self.over and not self.gap and not self.buffer

    def offer(self, told: Told) -> None:
        """Keep an event that follows all that were offered before."""
        types = self.wanted.types
        if told.seq <= self.place or (types and told.view.type not in types):
            return
        if len(self.buffer) >= ROOM:
            self.buffer.clear()
            self.gap = True
        if not self.gap:
            self.buffer.append(told)
        self.woken.set()

    def take(self) -> list[Told]:
        """What is in the buffer."""
        taken, self.buffer = self.buffer, []
        if taken:
            self.place = taken[-1].seq
        return taken


class Broadcast:
    """The listeners of one event loop."""

    def __init__(self, database: Database, *, tick_s: float) -> None:
        self._database = database
        self._tick_s = tick_s
        self._listeners: dict[tuple[str, str | None], set[Listener]] = {}
        self._tail: int | None = None  # the number of the newest event that was handed out; None: nobody looks
        self._looking = asyncio.Event()
        self._readers = asyncio.Semaphore(READERS)
        self._watch: asyncio.Task[None] | None = None
        self._slowly_at = 0.0
        self._ask: set[str] = set()
        self.closed = False

    @contextmanager
    def listening(self, wanted: Wanted, place: int) -> Iterator[Listener]:
        """Listen from `place` on, for as long as the block runs."""
        listener = Listener(wanted, place, gap=self._tail is None or place < self._tail)
        key = (wanted.tenant_id, wanted.job_id)
        self._listeners.setdefault(key, set()).add(listener)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            with metrics.LISTENING.track_inprogress():
                yield listener
        finally:
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]

    async def next(self, listener: Listener) -> list[Told]:
        """The next events; none as a heartbeat, when the listener has ended, and when the process ends."""
        # What is committed between a reading of the database and the first look would be in neither.
        await self._looking.wait()
        clock_s = asyncio.get_running_loop().time
        listener.beat_at = clock_s() + HEARTBEAT_S
        while True:
            found = await self._caught_up(listener) if listener.gap else listener.take()
            if found or listener.ended or self.closed or clock_s() >= listener.beat_at:
                return found
            if not listener.gap:
                listener.woken.clear()
                await listener.woken.wait()

    async def close(self) -> None:
        """Wake all who listen, who then go, and look no more."""
        self.closed = True
        self._looking.set()
        for listener in self._all():
            listener.woken.set()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _caught_up(self, listener: Listener) -> list[Told]:
        """Read on from the listener's place; what is offered meanwhile waits in its buffer."""
        listener.gap = False
        try:
            async with self._readers:
                rows = await run_in_threadpool(self._read, listener.wanted, listener.place)
        except BaseException:
            listener.gap = True
            raise
        if len(rows) == events.AT_ONCE:
            listener.gap = True
        if rows:
            listener.place = rows[-1].seq
        listener.buffer = [told for told in listener.buffer if told.seq > listener.place]
        return [_told(row) for row in rows]

    def _read(self, wanted: Wanted, place: int) -> list[Numbered]:
        with reading(self._database) as session:
            return events.page(session, wanted, place)

    async def _look(self) -> None:
        """Look once per tick while anyone listens."""
        clock_s = asyncio.get_running_loop().time
        try:
            while self._listeners and not self.closed:
                if clock_s() - self._slowly_at >= SLOWLY_S:
                    self._slowly_at = clock_s()
                    self._beat(clock_s())
                    self._ask = {job_id for _, job_id in self._listeners if job_id}
                more = await self._looked()
                await asyncio.sleep(0 if more else self._tick_s)
        finally:
            self._tail = None
            if not self.closed:
                self._looking.clear()

    def _beat(self, now_s: float) -> None:
        for listener in self._all():
            if listener.beat_at <= now_s:
                listener.woken.set()

    async def _looked(self) -> bool:
        """Look, and hand out what was found; whether there may be more of it already."""
        asked, self._ask = self._ask, set()
        try:
            news = await run_in_threadpool(self._news, self._tail, asked)
        except Exception as error:
            # The database is away for now: the listeners stay, and hear what happened when it is back.
            self._ask |= asked
            log.warning("events_not_read", error=type(error).__name__)
            return False
        try:
            self._hand_out(news)
        except Exception as error:
            # One event that cannot be told must not silence all who listen.
            log.exception("events_not_told", error=type(error).__name__)
            self._ask |= asked
            self._leave_to_each()
        return len(news.rows) == events.AT_ONCE

    def _leave_to_each(self) -> None:
        """Let each listener read from the database what is its own: only whom a bad event concerns then fails."""
        for listener in self._all():
            listener.gap = True
            listener.woken.set()

    def _news(self, place: int | None, job_ids: Collection[str]) -> _News:
        """What happened since `place`; a job that is over was so before its last events were read here."""
        over: set[str] = set()
        if job_ids:
            with reading(self._database) as session:
                over = events.over(session, job_ids)
        tail = events.numbered(self._database)
        if place is None or tail <= place:
            return _News(tail, [], over)
        try:
            with reading(self._database) as session:
                rows = events.since(session, place)
        except ValueError as error:  # a row that is none of ours, or not whole
            log.exception("events_not_read", error=type(error).__name__)
            return _News(tail, [], over, unread=True)
        return _News(rows[-1].seq if rows else tail, rows, over)

    def _hand_out(self, news: _News) -> None:
        self._tail = news.tail
        self._looking.set()
        if news.unread:
            self._leave_to_each()
        for row in news.rows:
            of_job = self._of(row.tenant_id, row.job_id) if row.job_id else ()
            listeners = [*self._of(row.tenant_id, None), *of_job]
            if listeners:
                told = _told(row)
                for listener in listeners:
                    listener.offer(told)
            if row.job_id and of_job:
                self._ask.add(row.job_id)
        if len(news.rows) == events.AT_ONCE:
            self._ask |= news.over  # more is to come, perhaps of these jobs
            return
        for listener in self._all() if news.over else ():
            if listener.wanted.job_id in news.over:
                listener.over = True
                listener.woken.set()

    def _of(self, tenant_id: str, job_id: str | None) -> Collection[Listener]:
        return self._listeners.get((tenant_id, job_id), ())

    def _all(self) -> Iterator[Listener]:
        for listeners in self._listeners.values():
            yield from listeners


def _told(row: Numbered) -> Told:
    sent = ServerSentEvent(row.view.model_dump_json(), id=row.view.id, event=row.view.type, sep="\n")
    return Told(row.seq, row.view, sent.encode())
