"""What platforms build on: batches, idempotent answers, numbered events, attempts, an audit log, test mode, limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON_VALUE = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
REFUSAL = "deeds are append-only"


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "deeds",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=48), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("detail", JSON_VALUE, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deeds")),
    )
    with op.batch_alter_table("deeds") as batch_op:
        batch_op.create_index("ix_deeds_tenant_id_id", ["tenant_id", "id"], unique=False)

    op.create_table(
        "batches",
        sa.Column("mode", sa.String(length=4), server_default="live", nullable=False),
        sa.Column("external_id", sa.String(length=128), nullable=True),
        sa.Column("metadata", JSON_VALUE, nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("open", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_batches_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    with op.batch_alter_table("batches") as batch_op:
        batch_op.create_index("ix_batches_tenant_id_id", ["tenant_id", "id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.String(length=512), nullable=True),
        sa.Column("response", sa.String(length=1024), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("tenant_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_attempts_delivery_id_deliveries")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_attempts_tenant_id_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
    )
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.create_index(batch_op.f("ix_attempts_delivery_id"), ["delivery_id"], unique=False)

    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.add_column(sa.Column("mode", sa.String(length=4), server_default="live", nullable=False))
        batch_op.add_column(sa.Column("replaced_by", sa.String(length=32), nullable=True))

    with op.batch_alter_table("deliveries") as batch_op:
        batch_op.add_column(sa.Column("tries", sa.Integer(), server_default="0", nullable=False))
        batch_op.drop_index(batch_op.f("ix_deliveries_destination_id"))
        batch_op.create_index("ix_deliveries_destination_id_id", ["destination_id", "id"], unique=False)
        batch_op.create_index(
            "ix_deliveries_destination_id_status_id", ["destination_id", "status", "id"], unique=False
        )
        batch_op.drop_index("ix_deliveries_waiting")
        batch_op.create_index(
            "ix_deliveries_waiting",
            ["destination_id", "due_at", "id"],
            unique=False,
            postgresql_where=sa.text("status = 'queued'"),
            sqlite_where=sa.text("status = 'queued'"),
        )

    with op.batch_alter_table("destinations") as batch_op:
        batch_op.add_column(sa.Column("old_secret_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("description", sa.String(length=256), server_default="", nullable=False))
        batch_op.add_column(sa.Column("disabled_because", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))

    with op.batch_alter_table("events") as batch_op:
        batch_op.add_column(sa.Column("mode", sa.String(length=4), server_default="live", nullable=False))
        batch_op.create_index(
            "ix_events_unnumbered",
            ["created_at", "id"],
            unique=False,
            postgresql_where=sa.text("seq IS NULL"),
            sqlite_where=sa.text("seq IS NULL"),
        )

    with op.batch_alter_table("explanations") as batch_op:
        batch_op.add_column(sa.Column("mode", sa.String(length=4), server_default="live", nullable=False))
        batch_op.create_index(
            "ix_explanations_rehearsed",
            ["id"],
            unique=False,
            postgresql_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
            sqlite_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
        )

    with op.batch_alter_table("idempotency_keys") as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_keys_job_id"), ["job_id"], unique=False)
        batch_op.add_column(sa.Column("headers", JSON_VALUE, nullable=True))
        batch_op.add_column(sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True))

    with op.batch_alter_table("jobs") as batch_op:
        batch_op.add_column(sa.Column("mode", sa.String(length=4), server_default="live", nullable=False))
        batch_op.add_column(sa.Column("batch_id", sa.String(length=32), nullable=True))
        batch_op.create_index(
            "ix_jobs_batch_id_id",
            ["batch_id", "id"],
            unique=False,
            postgresql_where=sa.text("batch_id IS NOT NULL"),
            sqlite_where=sa.text("batch_id IS NOT NULL"),
        )
        batch_op.create_index("ix_jobs_tenant_id_priority_id", ["tenant_id", "priority", "id"], unique=False)
        batch_op.drop_index("ix_jobs_tenant_id_external_id")
        batch_op.create_index("ix_jobs_tenant_id_external_id_id", ["tenant_id", "external_id", "id"], unique=False)
        batch_op.create_index(
            "ix_jobs_tenant_id_top_class_id",
            ["tenant_id", "top_class", "id"],
            unique=False,
            postgresql_where=sa.text("top_class IS NOT NULL"),
            sqlite_where=sa.text("top_class IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_jobs_tenant_id_id_test",
            ["tenant_id", "id"],
            unique=False,
            postgresql_where=sa.text("mode = 'test'"),
            sqlite_where=sa.text("mode = 'test'"),
        )
        batch_op.create_index(
            "ix_jobs_rehearsed",
            ["id"],
            unique=False,
            postgresql_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
            sqlite_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
        )
        batch_op.create_foreign_key(batch_op.f("fk_jobs_batch_id_batches"), "batches", ["batch_id"], ["id"])

    with op.batch_alter_table("tenants") as batch_op:
        batch_op.add_column(sa.Column("rate_per_minute", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("queued_cap", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("retention_days", sa.Integer(), nullable=True))

    with op.batch_alter_table("workers") as batch_op:
        batch_op.add_column(sa.Column("draining", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("holds", JSON_VALUE, server_default="[]", nullable=False))

    op.execute("INSERT INTO counters (name, value) VALUES ('events', 0)")
    _forbid_changes()


def downgrade() -> None:
    with op.batch_alter_table("workers") as batch_op:
        batch_op.drop_column("holds")
        batch_op.drop_column("draining")

    with op.batch_alter_table("tenants") as batch_op:
        batch_op.drop_column("retention_days")
        batch_op.drop_column("queued_cap")
        batch_op.drop_column("rate_per_minute")

    with op.batch_alter_table("jobs") as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_jobs_batch_id_batches"), type_="foreignkey")
        batch_op.drop_index(
            "ix_jobs_rehearsed",
            postgresql_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
            sqlite_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
        )
        batch_op.drop_index(
            "ix_jobs_tenant_id_id_test",
            postgresql_where=sa.text("mode = 'test'"),
            sqlite_where=sa.text("mode = 'test'"),
        )
        batch_op.drop_index(
            "ix_jobs_tenant_id_top_class_id",
            postgresql_where=sa.text("top_class IS NOT NULL"),
            sqlite_where=sa.text("top_class IS NOT NULL"),
        )
        batch_op.drop_index("ix_jobs_tenant_id_external_id_id")
        batch_op.create_index("ix_jobs_tenant_id_external_id", ["tenant_id", "external_id"], unique=False)
        batch_op.drop_index("ix_jobs_tenant_id_priority_id")
        batch_op.drop_index(
            "ix_jobs_batch_id_id",
            postgresql_where=sa.text("batch_id IS NOT NULL"),
            sqlite_where=sa.text("batch_id IS NOT NULL"),
        )
        batch_op.drop_column("batch_id")
        batch_op.drop_column("mode")

    with op.batch_alter_table("idempotency_keys") as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_keys_job_id"))
        batch_op.drop_column("locked_until")
        batch_op.drop_column("headers")

    with op.batch_alter_table("explanations") as batch_op:
        batch_op.drop_index(
            "ix_explanations_rehearsed",
            postgresql_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
            sqlite_where=sa.text("mode = 'test' AND status IN ('queued', 'running')"),
        )
        batch_op.drop_column("mode")

    with op.batch_alter_table("events") as batch_op:
        batch_op.drop_index(
            "ix_events_unnumbered", postgresql_where=sa.text("seq IS NULL"), sqlite_where=sa.text("seq IS NULL")
        )
        batch_op.drop_column("mode")

    with op.batch_alter_table("destinations") as batch_op:
        batch_op.drop_column("deleted_at")
        batch_op.drop_column("failing_since")
        batch_op.drop_column("disabled_because")
        batch_op.drop_column("description")
        batch_op.drop_column("old_secret_until")

    with op.batch_alter_table("deliveries") as batch_op:
        batch_op.drop_index("ix_deliveries_waiting")
        batch_op.create_index(
            "ix_deliveries_waiting",
            ["due_at", "id"],
            unique=False,
            postgresql_where=sa.text("status = 'queued'"),
            sqlite_where=sa.text("status = 'queued'"),
        )
        batch_op.drop_index("ix_deliveries_destination_id_status_id")
        batch_op.drop_index("ix_deliveries_destination_id_id")
        batch_op.create_index(batch_op.f("ix_deliveries_destination_id"), ["destination_id"], unique=False)
        batch_op.drop_column("tries")

    with op.batch_alter_table("api_keys") as batch_op:
        batch_op.drop_column("replaced_by")
        batch_op.drop_column("mode")

    with op.batch_alter_table("attempts") as batch_op:
        batch_op.drop_index(batch_op.f("ix_attempts_delivery_id"))

    op.drop_table("attempts")
    with op.batch_alter_table("batches") as batch_op:
        batch_op.drop_index("ix_batches_tenant_id_id")

    op.drop_table("batches")
    with op.batch_alter_table("deeds") as batch_op:
        batch_op.drop_index("ix_deeds_tenant_id_id")

    op.drop_table("deeds")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")
    op.drop_table("counters")


def _forbid_changes() -> None:
    """The database itself refuses to change or to delete a row of the audit log."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER deeds_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON deeds "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER deeds_no_{change.lower()} BEFORE {change} ON deeds "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
