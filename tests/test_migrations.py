"""The migrations make exactly the tables of shared/models.py, up and down, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from shared.columns import Base, Owned
from shared.db import Database, open_database
from shared.settings import ROOT, Settings

CONFIG = ROOT / "alembic.ini"


def _to(settings: Settings, revision: str) -> None:
    config = Config(CONFIG)
    config.attributes["settings"] = settings
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def _difference(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)


def _tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}


@pytest.fixture
def empty(empty_settings: Settings) -> Database:
    database = open_database(empty_settings)
    yield database
    database.engine.dispose()


def test_head_equals_the_models(empty_settings, empty):
    _to(empty_settings, "head")
    assert _tables(empty) == set(Base.metadata.tables)
    assert _difference(empty) == []


def test_the_comparison_sees_a_missing_index(empty_settings, empty):
    _to(empty_settings, "head")
    with empty.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_jobs_waiting")
    assert _difference(empty) != []


def test_every_revision_goes_up_and_down(empty_settings, empty):
    script = ScriptDirectory.from_config(Config(CONFIG))
    revisions = [revision.revision for revision in reversed(list(script.walk_revisions()))]
    for revision in revisions:
        _to(empty_settings, revision)
    _to(empty_settings, "base")
    assert _tables(empty) == set()
    _to(empty_settings, "head")
    assert _difference(empty) == []


def test_every_row_of_a_customer_has_a_tenant():
    shared_by_all = {"tenants", "workers", "locks", "counters", "deeds"}
    for name, table in Base.metadata.tables.items():
        if name not in shared_by_all:
            assert not table.c.tenant_id.nullable, name
    assert issubclass(Base.registry._class_registry["Job"], Owned)
