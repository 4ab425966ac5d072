"""Reading a job, now or when something happens to it; waiting holds no thread and no connection."""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from shared import views
from shared.db import asking, reading
from shared.schemas import JobView, Status

WAIT_PREFERENCE = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)


class Versioned(NamedTuple):
    """A job and the version of its row."""

    view: JobView
    version: int

    @property
    def etag(self) -> str:
        """The strong entity tag of this state."""
        return etag_of(self.version)


def etag_of(version: int) -> str:
    """The strong entity tag of a version; the place in the queue is no part of it."""
    return f'"{version}"'


def read(parts: Parts, tenant_id: str, job_id: str) -> Versioned:
    """The job as it is now, with its place in the queue; NotFound."""
    with reading(parts.database) as session:
        job = views.get(session, tenant_id, job_id)
        return Versioned(parts.forecast.placed(session, job, views.view(session, job)), job.version)


def version(parts: Parts, tenant_id: str, job_id: str) -> tuple[int, Status]:
    """The version and the status of the job, for one small query; NotFound."""
    with asking(parts.database) as connection:
        return views.version(connection, tenant_id, job_id)


async def ended(parts: Parts, tenant_id: str, job_id: str, timeout_s: float) -> Versioned:
    """The job when it has ended, or as it is after `timeout_s`."""
    if timeout_s > 0:
        await parts.notifier.wait(job_id, version=None, timeout_s=timeout_s)
    return await run_in_threadpool(read, parts, tenant_id, job_id)


async def changed(parts: Parts, tenant_id: str, seen: Versioned, timeout_s: float) -> Versioned:
    """The job when it has left the version `seen`, or as it is after `timeout_s`."""
    await parts.notifier.wait(seen.view.id, version=seen.version, timeout_s=timeout_s)
    return await run_in_threadpool(read, parts, tenant_id, seen.view.id)


def remaining_s(deadline: float) -> float:
    """Seconds until `deadline` on the event loop's clock, never negative."""
    return max(0.0, deadline - asyncio.get_running_loop().time())


def preferred_s(prefer: str | None, longest_s: float) -> float | None:
    """N of `Prefer: wait=N` (RFC 7240), at most `longest_s`; None when it is not asked for."""
    found = WAIT_PREFERENCE.search(prefer or "")
    return min(float(found[1]), longest_s) if found else None


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the `If-None-Match` header names `etag`; compared weakly, as RFC 9110 asks."""
    if if_none_match is None:
        return False
    offered = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in offered or etag in offered
