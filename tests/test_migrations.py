"""The migrations make exactly the tables of shared/models.py, up and down, and lose no row on SQLite or PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from shared import ledger
from shared.columns import Base, Owned
from shared.db import Database, open_database, reading, transaction
from shared.models import Job
from shared.settings import ROOT, Settings

CONFIG = ROOT / "alembic.ini"
REVISIONS = [found.revision for found in ScriptDirectory.from_config(Config(CONFIG)).walk_revisions()][::-1]
NOW = datetime(2026, 1, 5, 8, 30, 0, 123456, UTC)


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
    for revision in REVISIONS:
        _to(empty_settings, revision)
    _to(empty_settings, "base")
    assert _tables(empty) == set()
    _to(empty_settings, "head")
    assert _difference(empty) == []


# ---------------------------------------------------------------- rows

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_upgrade_changes_no_row(empty_settings, empty, revision):
    """Two rows in every table of an earlier revision: one with every column filled, one with as few as may be."""
    _to(empty_settings, revision)
    before = _reflected(empty)
    with empty.engine.begin() as connection:
        for table in before.sorted_tables:
            if table.name != "alembic_version":
                connection.execute(table.insert(), list(_two_rows(connection, table)))
    filled = _rows(empty, before)
    assert {name for name, rows in filled.items() if len(rows) >= 2} == _tables(empty)
    _to(empty_settings, "head")
    assert _rows(empty, before) == filled
    _are_usable(empty)


def test_the_comparison_sees_a_lost_and_an_altered_row(empty_settings, empty):
    _to(empty_settings, "head")
    tables = _reflected(empty)
    tenants = tables.tables["tenants"]
    with empty.engine.begin() as connection:
        connection.execute(tenants.insert(), list(_two_rows(connection, tenants)))
    filled = _rows(empty, tables)
    for change in (
        tenants.update().where(tenants.c.name == filled["tenants"][0][1]).values(name="x"),
        tenants.delete(),
    ):
        with empty.engine.begin() as connection:
            connection.execute(change)
        assert _rows(empty, tables) != filled


def _reflected(database: Database) -> sa.MetaData:
    found = sa.MetaData()
    found.reflect(database.engine)
    return found


def _rows(database: Database, tables: sa.MetaData) -> Rows:
    """What stands now in the columns that `tables` had."""
    with database.engine.connect() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(*table.columns))), key=repr)
            for table in tables.sorted_tables
            if table.name != "alembic_version"
        }


def _two_rows(connection: sa.Connection, table: sa.Table) -> Iterator[dict[str, Any]]:
    """A full row and a bare one, which keep every constraint of the table."""
    for number, full in enumerate((True, False)):
        yield {
            column.name: _value(connection, table, column, number)
            for column in table.columns
            if full or not column.nullable
        } | {column.name: None for column in table.columns if not full and column.nullable}


def _value(connection: sa.Connection, table: sa.Table, column: sa.Column[Any], number: int) -> Any:
    for key in column.foreign_keys:
        parents = connection.execute(sa.select(key.column).order_by(key.column)).scalars().all()
        return parents[number]
    if allowed := _allowed(connection, table.name, column.name):
        return allowed[number]
    if isinstance(column.type, sa.String):
        return f"{column.name[:20]} ä {number}"[: column.type.length]
    if isinstance(column.type, sa.JSON):
        return {"list": [number, None, "ä"], "object": {"a": 0.1}}
    if isinstance(column.type, sa.DateTime):
        moment = NOW + timedelta(days=number)
        return moment if connection.dialect.name == "postgresql" else moment.replace(tzinfo=None)
    if isinstance(column.type, sa.Boolean):
        return number == 0
    assert isinstance(column.type, sa.Integer), f"{table.name}.{column.name}: {column.type!r}"
    return number + 7


def _allowed(connection: sa.Connection, table: str, column: str) -> list[str]:
    """The values that a check of the table allows in this column; none when there is no such check."""
    for check in inspect(connection).get_check_constraints(table):
        if re.match(rf"\W*{column}\b", str(check["sqltext"])):
            return re.findall(r"'(\w+)'", str(check["sqltext"]))
    return []


def _are_usable(database: Database) -> None:
    """Every row is one of our models', new columns included, and a job that was queued can be claimed."""
    with reading(database) as session:
        for mapper in Base.registry.mappers:
            session.scalars(sa.select(mapper.class_)).all()
        waiting = ledger.waiting(session, Job, 10)
    with transaction(database) as session:
        claims = ledger.claim_next(session, Job, 10, lease_s=60)
    assert [claim.id for claim in claims] == waiting
    assert len(waiting) == 1


def test_every_row_of_a_customer_has_a_tenant():
    shared_by_all = {"tenants", "workers", "locks", "counters", "deeds"}
    for name, table in Base.metadata.tables.items():
        if name not in shared_by_all:
            assert not table.c.tenant_id.nullable, name
    assert issubclass(Base.registry._class_registry["Job"], Owned)
