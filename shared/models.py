"""The tables. Every row of a customer carries its tenant; what is claimed under a lease is Leased."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from shared.schemas import Status

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
JSON_VALUE = JSON().with_variant(JSONB(), "postgresql")
WAITING = text("status = 'queued'")
HELD = text("status = 'running'")


class Moment(TypeDecorator[datetime]):
    """A point in time, always aware and in UTC; SQLite keeps no zone, so it is given back here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment without a time zone")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """What every table shares: its naming, and how Python's types become columns."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: Moment,
        dict[str, Any]: JSON_VALUE,
        list[str]: JSON_VALUE,
    }


class Tenant(Base):
    """One customer: nothing of another's is ever visible to it."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    created_at: Mapped[datetime]


class Owned(Base):
    """A row that belongs to one tenant."""

    __abstract__ = True
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(32), ForeignKey("tenants.id"))


class ApiKey(Owned):
    """A key of the API: only the sha256 of it is kept."""

    __tablename__ = "api_keys"
    name: Mapped[str] = mapped_column(String(128))
    prefix: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Leased(Owned):
    """A row that workers claim: order of service, lease, and how often it was claimed and lost."""

    __abstract__ = True
    status: Mapped[str] = mapped_column(String(10), default=Status.QUEUED.value)
    due_at: Mapped[datetime]  # the earliest is served first
    ready_at: Mapped[datetime | None]  # claimable from then on; null: it waits for another row
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(default=0)  # claims so far
    losses: Mapped[int] = mapped_column(default=0)  # claims whose worker never came back
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)


class Job(Leased):
    """One uploaded image and what became of it."""

    __tablename__ = "jobs"
    version: Mapped[int] = mapped_column(default=1)  # grows with every change a client can see
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
        Index("ix_jobs_tenant_id_external_id", "tenant_id", "external_id"),
        Index("ix_jobs_tenant_id_sha256", "tenant_id", "sha256"),
    )


class Explanation(Leased):
    """One explanation of one job: it can fail, be retried or be asked for later without touching the diagnosis."""

    __tablename__ = "explanations"
    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id"))
    method: Mapped[str] = mapped_column(String(16))
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("job_id", "method"),
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')", name="status"),
        Index("ix_explanations_waiting", "due_at", "id", postgresql_where=WAITING, sqlite_where=WAITING),
        Index("ix_explanations_held", "lease_until", postgresql_where=HELD, sqlite_where=HELD),
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
    """The answer that a key of a tenant was given, so that the same request twice is one job."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(String(32), ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("jobs.id"))
    status: Mapped[int | None]
    answer: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Event(Owned):
    """Something that happened to a job; `seq` is its place in the tenants' streams, given after the commit."""

    __tablename__ = "events"
    job_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("jobs.id"), index=True)
    type: Mapped[str] = mapped_column(String(48))
    payload: Mapped[dict[str, Any]]
    seq: Mapped[int | None] = mapped_column(BigInteger, unique=True)
    created_at: Mapped[datetime]

    __table_args__ = (Index("ix_events_tenant_id_seq", "tenant_id", "seq"),)


class Destination(Owned):
    """Where a tenant wants its events: a webhook or a PACS; `events` empty means all of them."""

    __tablename__ = "destinations"
    kind: Mapped[str] = mapped_column(String(8))
    address: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[str]]
    secrets: Mapped[list[str]]
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("kind IN ('webhook', 'pacs')", name="kind"),
        Index("ix_destinations_tenant_id", "tenant_id"),
    )


class Delivery(Leased):
    """One event on its way to one destination."""

    __tablename__ = "deliveries"
    event_id: Mapped[str] = mapped_column(String(32), ForeignKey("events.id"))
    destination_id: Mapped[str] = mapped_column(String(32), ForeignKey("destinations.id"), index=True)
    error: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("event_id", "destination_id"),
        CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')", name="status"),
        Index("ix_deliveries_waiting", "due_at", "id", postgresql_where=WAITING, sqlite_where=WAITING),
        Index("ix_deliveries_held", "lease_until", postgresql_where=HELD, sqlite_where=HELD),
    )


class Worker(Base):
    """A worker process that was seen; it belongs to the operator, not to a tenant."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    queues: Mapped[list[str]]
    bundle: Mapped[str | None] = mapped_column(String(128))
    runtime: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(index=True)


class Lock(Base):
    """A named lease, so that of several sweepers one works."""

    __tablename__ = "locks"
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    until: Mapped[datetime]
