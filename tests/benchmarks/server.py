"""A real PostgreSQL for benchmarks, which flushes every commit to the disk, and databases on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from tests.chaos import postgres


@contextmanager
def databases(*names: str) -> Iterator[list[str]]:
    """The URLs of new empty databases, which are gone after the block."""
    with (
        tempfile.TemporaryDirectory(prefix="hilum-benchmark-", ignore_cleanup_errors=True) as folder,
        postgres.opened(Path(folder)) as server,
    ):
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"
            assert connection.scalar(text("SHOW fsync")) == "on"
            for name in names:
                connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        yield [make_url(server.url).set(database=name).render_as_string(hide_password=False) for name in names]
