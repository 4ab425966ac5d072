"""Alembic's entry: the database of the settings, one migration at a time even where several start at once."""

from __future__ import annotations

from typing import Literal

from alembic import context
from sqlalchemy import JSON, Connection, create_engine, text

from shared import models  # noqa: F401
from shared.columns import Base, Moment
from shared.db import url_of
from shared.settings import Settings

ADVISORY_LOCK = 0x48494C554D  # "HILUM"
LOCK_TIMEOUT_S = 5  # a migration waits this long for a table, so that it never blocks the whole service


def _render(kind: str, value: object, _: object) -> str | Literal[False]:
    """Write our column types into migrations as the plain types they are: old migrations must not import models."""
    if kind != "type":
        return False
    if isinstance(value, Moment):
        return "sa.DateTime(timezone=True)"
    if isinstance(value, JSON):
        return "sa.JSON().with_variant(postgresql.JSONB(), 'postgresql')"
    return False


def _run(connection: Connection) -> None:
    postgresql = connection.dialect.name == "postgresql"
    if postgresql:
        connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=not postgresql,
        render_item=_render,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    if postgresql:
        connection.commit()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        connection.commit()


def _main() -> None:
    given = context.config.attributes.get("connection")
    if given is not None:
        return _run(given)
    settings = context.config.attributes.get("settings") or Settings()
    if not settings.database_url:
        settings.home.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url_of(settings))
    with engine.connect() as connection:
        _run(connection)
    engine.dispose()
    return None


_main()
