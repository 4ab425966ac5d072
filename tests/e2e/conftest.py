"""A whole service: shared by the tests that leave it as it was, made anew for those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shared.bundles import Bundle
from shared.settings import Settings
from tests import servers
from tests.conftest import BOTH, postgres_database
from tests.servers import Broker, Service

UPLOAD_BYTES = 8 * 2**20

Configure = Callable[..., Settings]


@pytest.fixture(scope="session")
def configure(tiny: Bundle, compiled_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """Settings of a service in a new home, with the tiny bundle and its graphs compiled already."""

    def made(**values: Any) -> Settings:
        home = tmp_path_factory.mktemp("service")
        (home / "cache").symlink_to(compiled_home / "cache")
        return Settings(home=home, bundle=tiny.root, threads=1, **values)

    return made


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Redis for every service that leaves it as it was."""
    with servers.broker(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="session")
def on_sqlite(configure: Configure, broker: Broker) -> Iterator[Service]:
    """API, worker and sweeper on SQLite, with limits that are tight enough to be reached in a test."""
    settings = configure(max_upload_bytes=UPLOAD_BYTES, decode_memory_bytes=3 * 2**29)
    with servers.whole_service(settings, broker) as found:
        yield found


@pytest.fixture(params=BOTH)
def database_kind(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of a database that is empty: SQLite in the service's home, or a new one on a real PostgreSQL."""
    if request.param == "sqlite":
        yield {}
        return
    with postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield {"database_url": url}


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A Redis that the test may freeze, flush and stop."""
    with servers.broker(tmp_path) as found:
        yield found


@pytest.fixture
def started() -> Iterator[ExitStack]:
    """Where a test enters the processes that it starts; all of them end with it."""
    with ExitStack() as stack:
        yield stack
