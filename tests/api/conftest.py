"""The API on a real socket over a real database, without workers: tests end jobs as a worker's ledger would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from shared import explanations, jobs, ledger, tenants
from shared.artifacts import Stored, key_of
from shared.bundles import Bundle
from shared.db import Database, transaction
from shared.ledger import Claim
from shared.models import Explanation, Job
from shared.schemas import Analysis, Reason
from shared.settings import Settings
from shared.storage import open_storage
from tests import builders, servers
from tests.conftest import postgres_database
from tests.values import analysis

FILM = builders.png(builders.chest(3, (160, 144)))

both = pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """SQLite, unless the test asks for `both`."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path / 'hilum.db'}"
        return
    with postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture
def settings(settings: Settings, tiny: Bundle) -> Settings:
    """Settings of an API on a migrated database of its own."""
    return settings.model_copy(update={"bundle": tiny.root, "notifier_tick_s": 0.02})


@contextmanager
def serving(settings: Settings, app: FastAPI | None = None) -> Iterator[str]:
    """The API (or `app`) in a thread of this process, on a port of its own; yields its base URL."""
    config = uvicorn.Config(
        app or create_app(settings), host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    servers.until(lambda: server.started or not thread.is_alive(), within_s=20, what="the API")
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """The base URL of an API that runs."""
    with serving(settings) as found:
        yield found


@pytest.fixture
def key(database: Database, tenant_id: str) -> str:
    """A key of the tenant."""
    with transaction(database) as session:
        return tenants.create_key(session, tenant_id)


def client_of(url: str, key: str | None) -> httpx.Client:
    """A client with that key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False)


@pytest.fixture
def client(url: str, key: str) -> Iterator[httpx.Client]:
    """A client of the API with the tenant's key."""
    with client_of(url, key) as found:
        yield found


@pytest.fixture
def anonymous(url: str) -> Iterator[httpx.Client]:
    """A client without a key."""
    with client_of(url, None) as found:
        yield found


Submit = Callable[..., dict[str, Any]]


@pytest.fixture
def submit(client: httpx.Client) -> Submit:
    """Submit a film with fields, and return the job."""

    def one(data: bytes = FILM, **fields: str) -> dict[str, Any]:
        answer = client.post("/v1/jobs", files={"file": data}, data=fields)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return one


class Hand:
    """Does by hand, on the real ledger and the real store, what a worker does."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._storage = database, open_storage(settings)

    def claim(self, table: type[Job] | type[Explanation] = Job) -> Claim:
        """The next row."""
        with transaction(self._database) as session:
            (claim,) = ledger.claim_next(session, table, 1, lease_s=60)
        return claim

    def stage(self, claim: Claim, stage: str) -> None:
        """The row enters a stage."""
        with transaction(self._database) as session:
            ledger.renew(session, claim, lease_s=60, stage=stage)

    def store(self, claim: Claim, job_id: str, **files: bytes) -> list[Stored]:
        """Files of the claim, by name with `_` for the dot."""
        stored = []
        for name, data in files.items():
            name = name.replace("_", ".")
            key = key_of(claim.tenant_id, job_id, claim.attempt, name)
            media_type = {"png": "image/png", "jpg": "image/jpeg", "npz": "application/zip"}[name[-3:]]
            self._storage.put(key, data, media_type)
            stored.append(Stored(name, key, media_type, len(data)))
        return stored

    def succeed(self, claim: Claim | None = None, said: Analysis | None = None, **files: bytes) -> str:
        """The claimed (or the next) job succeeds; returns its id."""
        claim = claim or self.claim()
        stored = self.store(claim, claim.id, **(files or {"lungs_png": b"a mask"}))
        with transaction(self._database) as session:
            jobs.finish(session, claim, said or analysis(), stored)
        return claim.id

    def reject(self, code: str = "too_small", bundle: str = "tiny@0.0.1#abc") -> str:
        """The next job is rejected."""
        claim = self.claim()
        reason = Reason(code=code, detail="too low: the shorter side", value=64.0, threshold=96.0)
        with transaction(self._database) as session:
            jobs.reject(session, claim, reason, bundle)
        return claim.id

    def explain(self, job_id: str, **files: bytes) -> None:
        """The next explanation succeeds."""
        claim = self.claim(Explanation)
        stored = self.store(claim, job_id, **files)
        with transaction(self._database) as session:
            explanations.finish(session, claim, {"class": "normal"}, stored)


@pytest.fixture
def hand(database: Database, settings: Settings) -> Hand:
    """The worker's hand."""
    return Hand(database, settings)


def later(seconds: float, act: Callable[[], object]) -> threading.Timer:
    """Do something in a while, in another thread."""
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer
