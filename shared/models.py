"""The tables. Every row of a customer carries its tenant; what is claimed under a lease is Leased."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.columns import Base, Leased, Owned

LIVE, TEST = "live", "test"
WAITING = text("status = 'queued'")
HELD = text("status = 'running'")
REHEARSED = text("mode = 'test' AND status IN ('queued', 'running')")
UNNUMBERED = text("seq IS NULL")
IN_BATCH = text("batch_id IS NOT NULL")
READ = text("top_class IS NOT NULL")
TESTED = text("mode = 'test'")


class Tenant(Base):
    """One customer: nothing of another's is ever visible to it."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[datetime]
    # null: what the settings say
    rate_per_minute: Mapped[int | None]  # requests; 0: no limit
    queued_cap: Mapped[int | None]  # jobs that may wait at a time; 0: no limit
    retention_days: Mapped[int | None]  # jobs that ended longer ago are purged; 0: never


class ApiKey(Owned):
    """A key of the API: only the sha256 of it is kept."""

    __tablename__ = "api_keys"
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    mode: Mapped[str] = mapped_column(String(4), default=LIVE, server_default=LIVE)  # a test key makes test jobs
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    replaced_by: Mapped[str | None] = mapped_column(String(32))  # the key it was rotated to


class Job(Leased):
    """One uploaded image and what became of it."""

    __tablename__ = "jobs"
    version: Mapped[int] = mapped_column(default=1)  # grows with every change a client can see
    mode: Mapped[str] = mapped_column(String(4), default=LIVE, server_default=LIVE)  # test: no worker ever sees it
    batch_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("batches.id"))
    priority: Mapped[str] = mapped_column(String(8))
    stage: Mapped[str | None] = mapped_column(String(32))
    external_id: Mapped[str | None] = mapped_column(String(128))
    free: Mapped[dict[str, Any]] = mapped_column("metadata")  # the client's own, never interpreted
    blob_key: Mapped[str] = mapped_column(String(160))
    media_type: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)  # bytes
    sha256: Mapped[str] = mapped_column(String(64))
    bundle: Mapped[str | None] = mapped_column(String(128))
    top_class: Mapped[str | None] = mapped_column(String(64))
    result: Mapped[dict[str, Any] | None]
    reason: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'rejected', 'canceled')", name="status"
        ),
        CheckConstraint("priority IN ('stat', 'urgent', 'routine')", name="priority"),
        Index("ix_jobs_waiting", "due_at", "id", postgresql_where=WAITING, sqlite_where=WAITING),
        Index("ix_jobs_held", "lease_until", postgresql_where=HELD, sqlite_where=HELD),
        Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
        Index("ix_jobs_tenant_id_status_id", "tenant_id", "status", "id"),
        Index("ix_jobs_tenant_id_priority_id", "tenant_id", "priority", "id"),
        Index("ix_jobs_tenant_id_external_id_id", "tenant_id", "external_id", "id"),
        Index(
            "ix_jobs_tenant_id_top_class_id", "tenant_id", "top_class", "id", postgresql_where=READ, sqlite_where=READ
        ),
        Index("ix_jobs_tenant_id_id_test", "tenant_id", "id", postgresql_where=TESTED, sqlite_where=TESTED),
        Index("ix_jobs_tenant_id_sha256", "tenant_id", "sha256"),
        Index("ix_jobs_rehearsed", "id", postgresql_where=REHEARSED, sqlite_where=REHEARSED),
        Index("ix_jobs_batch_id_id", "batch_id", "id", postgresql_where=IN_BATCH, sqlite_where=IN_BATCH),
    )


class Batch(Owned):
    """Many jobs that were submitted as one; `open` of its `total` jobs have not ended."""

    __tablename__ = "batches"
    mode: Mapped[str] = mapped_column(String(4), default=LIVE, server_default=LIVE)  # of its jobs
    external_id: Mapped[str | None] = mapped_column(String(128))
    free: Mapped[dict[str, Any]] = mapped_column("metadata")  # the client's own, never interpreted
    total: Mapped[int]
    open: Mapped[int]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_batches_tenant_id_id", "tenant_id", "id"),)


class Explanation(Leased):
    """One explanation of one job: it can fail, be retried or be asked for later without touching the diagnosis."""

    __tablename__ = "explanations"
    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id"))
    method: Mapped[str] = mapped_column(String(16))
    mode: Mapped[str] = mapped_column(String(4), default=LIVE, server_default=LIVE)  # of its job
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("job_id", "method"),
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')", name="status"),
        Index("ix_explanations_waiting", "due_at", "id", postgresql_where=WAITING, sqlite_where=WAITING),
        Index("ix_explanations_held", "lease_until", postgresql_where=HELD, sqlite_where=HELD),
        Index("ix_explanations_rehearsed", "id", postgresql_where=REHEARSED, sqlite_where=REHEARSED),
    )


class Artifact(Owned):
    """A file that an analysis or an explanation left in storage."""

    __tablename__ = "artifacts"
    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id"))
    explanation_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("explanations.id"))
    name: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(160))
    media_type: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)  # bytes

    __table_args__ = (
        UniqueConstraint("job_id", "name"),
        Index("ix_artifacts_explanation_id", "explanation_id"),
    )


class IdempotencyKey(Base):
    """The answer that a key of a tenant was given, so that the same request twice is one job.

    `status` is null while the first request is in flight; one that never came back loses its right at `locked_until`.
    """

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(String(32), ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("jobs.id"), index=True)
    status: Mapped[int | None]
    headers: Mapped[dict[str, Any] | None]
    answer: Mapped[str | None]
    locked_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Event(Owned):
    """Something that happened to a job; `seq` is its place in the tenants' streams, given after the commit."""

    __tablename__ = "events"
    job_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("jobs.id"), index=True)
    type: Mapped[str] = mapped_column(String(48))
    mode: Mapped[str] = mapped_column(String(4), default=LIVE, server_default=LIVE)  # of its job
    payload: Mapped[dict[str, Any]]
    seq: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    created_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_events_tenant_id_seq", "tenant_id", "seq"),
        Index("ix_events_unnumbered", "created_at", "id", postgresql_where=UNNUMBERED, sqlite_where=UNNUMBERED),
    )


class Counter(Base):
    """A number that only grows; whoever adds to it holds the row until the commit, so its order is that of commits."""

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class Destination(Owned):
    """Where a tenant wants its events: a webhook or a PACS; `events` empty means all of them."""

    __tablename__ = "destinations"
    kind: Mapped[str] = mapped_column(String(8))
    address: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[str]]
    secrets: Mapped[list[str]]  # the newest first; the second signs too until `old_secret_until`
    old_secret_until: Mapped[datetime | None]
    description: Mapped[str] = mapped_column(String(256), default="", server_default="")
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_because: Mapped[str | None] = mapped_column(String(32))
    failing_since: Mapped[datetime | None]  # null: the last delivery arrived
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("kind IN ('webhook', 'pacs')", name="kind"),
        Index("ix_destinations_tenant_id", "tenant_id"),
    )


class Delivery(Leased):
    """One event on its way to one destination.

    `due_at` is when it is to be sent (again), so the rows of a destination that wait for their next try sort last.
    """

    __tablename__ = "deliveries"
    event_id: Mapped[str] = mapped_column(String(32), ForeignKey("events.id"))
    destination_id: Mapped[str] = mapped_column(String(32), ForeignKey("destinations.id"))
    tries: Mapped[int] = mapped_column(default=0, server_default="0")  # that failed since its owner last asked for it
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("event_id", "destination_id"),
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')", name="status"),
        # By destination first: what one that is dead has piled up is never read for the sake of the others.
        Index(
            "ix_deliveries_waiting", "destination_id", "due_at", "id", postgresql_where=WAITING, sqlite_where=WAITING
        ),
        Index("ix_deliveries_held", "lease_until", postgresql_where=HELD, sqlite_where=HELD),
        Index("ix_deliveries_destination_id_id", "destination_id", "id"),
        Index("ix_deliveries_destination_id_status_id", "destination_id", "status", "id"),
    )


class Attempt(Owned):
    """One try to deliver: the log that a receiver's owner reads."""

    __tablename__ = "attempts"
    delivery_id: Mapped[str] = mapped_column(String(32), ForeignKey("deliveries.id"), index=True)
    number: Mapped[int]
    at: Mapped[datetime]
    duration_ms: Mapped[int]
    status: Mapped[int | None]  # of HTTP; null: there was no answer
    error: Mapped[str | None] = mapped_column(String(32))  # a stable code
    detail: Mapped[str | None] = mapped_column(String(512))
    response: Mapped[str | None] = mapped_column(String(1024))  # how the body began


class Deed(Base):
    """Who did what and when; the database refuses to change or delete one. No foreign key: it outlives its subject."""

    __tablename__ = "deeds"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(String(32))
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(64))  # the id of a key, or who ran a command
    action: Mapped[str] = mapped_column(String(48))
    subject: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_deeds_tenant_id_id", "tenant_id", "id"),)


class Worker(Base):
    """A worker process that was seen; it belongs to the operator, not to a tenant."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    queues: Mapped[list[str]]
    bundle: Mapped[str | None] = mapped_column(String(128))
    runtime: Mapped[dict[str, Any] | None]
    draining: Mapped[bool] = mapped_column(default=False, server_default=false())  # it claims nothing more
    holds: Mapped[list[str]] = mapped_column(default=list, server_default="[]")  # rows, when it was last seen
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(index=True)


class Lock(Base):
    """A named lease, so that of several sweepers one works."""

    __tablename__ = "locks"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    until: Mapped[datetime]
