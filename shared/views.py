"""Jobs as their owner sees them: one, a page of them, the versions of many, and their artefacts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, bindparam, literal_column, select
from sqlalchemy.orm import Session

from shared import ids
from shared.errors import Invalid, NotFound
from shared.models import TEST, Artifact, Explanation, Job
from shared.ranges import within
from shared.schemas import Analysis, ExplanationView, Failure, JobPage, JobView, Mode, Priority, Reason, Status

# A job's id is made before its file is stored and its row written, and by another clock than `created_at`.
APART = timedelta(hours=1)
OLDEST, NEWEST = "job_", "job_8"  # no id sorts before the one or after the other
# Made once: to make and compare the statement costs more than to execute it, and nothing is asked more often.
VERSION = select(Job.version, Job.status).where(Job.id == bindparam("job_id"), Job.tenant_id == bindparam("tenant_id"))


def get(session: Session, tenant_id: str, job_id: str, *, lock: bool = False) -> Job:
    """The tenant's job as it is now, held until the commit when `lock`; NotFound, also for another's."""
    found = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
    if lock:
        found = found.with_for_update()
    job = session.scalars(found.execution_options(populate_existing=True)).one_or_none()
    if job is None:
        raise NotFound("There is no such job.")
    return job


def view(session: Session, job: Job) -> JobView:
    """The job with its explanations and artefacts."""
    return _views(session, [job])[0]


def view_of_new(job: Job) -> JobView:
    """A job that was submitted just now, without explanations: nothing else can belong to it, so nothing is asked."""
    return _view(job, [], [])


def page(session: Session, tenant_id: str, *, limit: int, cursor: str | None = None, **filters: Any) -> JobPage:
    """At most `limit` jobs older than `cursor`, newest first; `filters` as for `listed`. Invalid: no such cursor."""
    if cursor is not None and not ids.PATTERN.fullmatch(cursor):
        raise Invalid("The cursor is none that a page gave out.", code="invalid_cursor")
    rows = session.scalars(listed(tenant_id, cursor=cursor, **filters).limit(limit + 1)).all()
    more = len(rows) > limit
    return JobPage(jobs=_views(session, rows[:limit]), next_cursor=rows[limit - 1].id if more else None)


def listed(
    tenant_id: str,
    *,
    cursor: str | None = None,
    status: Status | None = None,
    top_class: str | None = None,
    priority: Priority | None = None,
    external_id: str | None = None,
    batch: str | None = None,
    mode: Mode | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Select[Any]:
    """The query of a tenant's jobs that pass every filter given, newest first: a range of one index."""
    found, oldest, newest = select(Job), OLDEST, cursor or NEWEST
    if created_after is not None:
        found = found.where(Job.created_at > created_after)
        oldest = ids.earliest("job", created_after - APART)
    if created_before is not None:
        found = found.where(Job.created_at < created_before)
        newest = min(newest, ids.earliest("job", created_before + APART))
    if mode is not None:
        # Written out, as the ledger's states are: a planner must see that the index of the few test jobs holds them.
        found = found.where(Job.mode == literal_column(f"'{mode}'"))
    wanted: dict[Any, str | None] = {
        Job.batch_id: batch,
        Job.external_id: external_id,
        Job.top_class: top_class,
        Job.status: status,
        Job.priority: priority,
    }
    key, fixed, rest = _range(tenant_id, [(column, value) for column, value in wanted.items() if value is not None])
    return within(found.where(*rest), (*key, Job.id), (*fixed, oldest), (*fixed, newest), descending=True)


def _range(tenant_id: str, filters: Sequence[tuple[Any, str]]) -> tuple[tuple[Any, ...], tuple[str, ...], list[Any]]:
    """The columns and values that begin the range, by the first of the filters, and what is asked of its rows."""
    rest = [column == value for column, value in filters[1:]]
    if not filters:
        return (Job.tenant_id,), (tenant_id,), rest
    column, value = filters[0]
    rest.append(column.is_not(None))  # the partial indexes say so too
    if column is Job.batch_id:
        return (column,), (value,), [*rest, Job.tenant_id == tenant_id]
    return (Job.tenant_id, column), (tenant_id, value), rest


def version(session: Session | Connection, tenant_id: str, job_id: str) -> tuple[int, Status]:
    """The version and the status of the tenant's job, by one query of its row alone; NotFound."""
    row = session.execute(VERSION, {"tenant_id": tenant_id, "job_id": job_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    return row.version, Status(row.status)


def versions(session: Session, job_ids: Collection[str]) -> dict[str, tuple[int, Status]]:
    """The version and the status of each job that exists, by id."""
    found = select(Job.id, Job.version, Job.status).where(Job.id.in_(job_ids))
    return {row.id: (row.version, Status(row.status)) for row in session.execute(found)}


def artifact(session: Session, tenant_id: str, job_id: str, name: str) -> Artifact:
    """The artefact `name` of the tenant's job; NotFound."""
    found = select(Artifact).where(Artifact.job_id == job_id, Artifact.tenant_id == tenant_id, Artifact.name == name)
    row = session.scalars(found).one_or_none()
    if row is None:
        raise NotFound("There is no such artefact.")
    return row


def _views(session: Session, rows: Sequence[Job]) -> list[JobView]:
    """The views of many jobs, with two queries for all their parts."""
    if not rows:
        return []
    keys = [job.id for job in rows]
    explained = select(Explanation).where(Explanation.job_id.in_(keys)).order_by(Explanation.id)
    kept = select(Artifact).where(Artifact.job_id.in_(keys)).order_by(Artifact.id)
    explanations = session.scalars(explained.execution_options(populate_existing=True)).all()
    artifacts = session.scalars(kept).all()
    return [
        _view(
            job,
            [row for row in explanations if row.job_id == job.id],
            [row for row in artifacts if row.job_id == job.id],
        )
        for job in rows
    ]


def _view(job: Job, explanations: Sequence[Explanation], artifacts: Sequence[Artifact]) -> JobView:
    return JobView(
        id=job.id,
        status=Status(job.status),
        stage=job.stage,
        priority=job.priority,  # type: ignore[arg-type]  # the table's check allows no other
        created_at=job.created_at,
        due_at=job.due_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        bundle=job.bundle,
        batch=job.batch_id,
        external_id=job.external_id,
        metadata=job.free,
        input={"media_type": job.media_type, "bytes": job.size, "sha256": job.sha256},
        result=Analysis.model_validate(job.result) if job.result else None,
        reason=Reason.model_validate(job.reason) if job.reason else None,
        error=Failure.model_validate(job.error) if job.error else None,
        explanations={row.method: _explanation(row, artifacts) for row in explanations},
        artifacts={row.name: f"/v1/jobs/{job.id}/artifacts/{row.name}" for row in artifacts},
        test=job.mode == TEST,
    )


def _explanation(row: Explanation, artifacts: Sequence[Artifact]) -> ExplanationView:
    return ExplanationView(
        method=row.method,  # type: ignore[arg-type]  # only known methods are ever stored
        status=Status(row.status),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        result=row.result,
        error=Failure.model_validate(row.error) if row.error else None,
        artifacts=[a.name for a in artifacts if a.explanation_id == row.id],
    )
