"""A worker's parts on a real database, with the tiny bundle; jobs to give it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import jobs, views
from shared.bundles import Bundle
from shared.db import Database, reading, transaction
from shared.schemas import JobView
from shared.settings import Settings
from shared.storage import open_storage
from worker.parts import Parts, open_parts
from worker.pipeline.predictor import Predictor
from worker.runtimes.choose import open_predictor
from worker.sandbox import Sandbox


@pytest.fixture
def settings(settings: Settings, tiny: Bundle, compiled_home: Path) -> Settings:
    """Settings of a worker on a migrated database of its own."""
    (settings.home / "cache").symlink_to(compiled_home / "cache")
    return settings.model_copy(update={"bundle": tiny.root, "pulse_s": 0.2})


@pytest.fixture(scope="session")
def predictor(tiny: Bundle, compiled_home: Path) -> Predictor:
    """The tiny networks, loaded once."""
    return open_predictor(tiny, cache=compiled_home / "cache", threads=1)


@pytest.fixture(scope="session")
def decoder() -> Iterator[Sandbox]:
    """One decoder for all tests that do not harm it."""
    opened = Sandbox()
    yield opened
    opened.close()


@pytest.fixture
def parts(settings: Settings, tiny: Bundle, database: Database, predictor: Predictor, decoder: Sandbox) -> Parts:
    """What a worker process holds; the bells it rings are those of the `rung` fixture."""
    opened = open_parts(settings, tiny, queues=("analyze", "explain"), threads=1)
    opened.database.engine.dispose()
    opened.database, opened.sandbox, opened._predictor = database, decoder, predictor
    return opened


@pytest.fixture
def submit(database: Database, settings: Settings, tenant_id: str) -> Callable[..., str]:
    """Store bytes, submit a job for them, and return its id."""

    def one(data: bytes, **wishes: object) -> str:
        job_id = jobs.new_id()
        key = f"{tenant_id}/{job_id}/input"
        open_storage(settings).put(key, data, "image/png")
        with transaction(database) as session:
            jobs.submit(
                session,
                settings,
                tenant_id=tenant_id,
                job_id=job_id,
                blob_key=key,
                media_type="image/png",
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                **wishes,  # type: ignore[arg-type]
            )
        return job_id

    return one


@pytest.fixture
def job_of(database: Database, tenant_id: str) -> Callable[[str], JobView]:
    def read(job_id: str) -> JobView:
        with reading(database) as session:
            return views.view(session, views.get(session, tenant_id, job_id))

    return read
