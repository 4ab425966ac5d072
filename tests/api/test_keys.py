"""Keys open what is their tenant's, and nothing else, on every route."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, update

from api import deps
from api.app import create_app
from shared import keys, tenants
from shared.db import Database, clock, transaction
from shared.models import ApiKey
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, Submit, both, client_of, serving

OPEN = {"/", "/healthz", "/readyz", "/metrics", "/health"}


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every operation that the service documents."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


def ask(
    client: httpx.Client, method: str, path: str, job_id: str, headers: dict[str, str] | None = None
) -> httpx.Response:
    """A sound request to an operation about that job."""
    filled = path.format(job_id=job_id, name="lungs.png", method="gradcam")
    if path in ("/v1/jobs", "/predict") and method == "POST":
        return client.post(filled, files={"file": FILM}, headers=headers)
    body = {"method": "gradcam"} if method == "POST" and path.endswith("/explanations") else None
    return client.request(method, filled, json=body, headers=headers)


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is looked up at every request, so that a test need not wait."""
    monkeypatch.setattr(deps, "KEY_CACHE_S", 0.0)


@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic eA=="}, {"Authorization": "Bearer"}])
def test_every_route_but_the_open_ones_needs_a_key(
    anonymous: httpx.Client, settings: Settings, header: dict[str, str]
) -> None:
    asked = 0
    for method, path in operations(create_app(settings)):
        answer = ask(anonymous, method, path, "job_01JDJ5W1M0QZ8N4T7X2B9C3D6F", header)
        if path in OPEN:
            assert answer.status_code != 401, path
            continue
        asked += 1
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert asked >= 10


@both
def test_another_tenants_job_is_not_there(
    submit: Submit, hand: Hand, url: str, database: Database, settings: Settings, client: httpx.Client
) -> None:
    """The same answer as for an id that never was, on every route that takes one."""
    submit(explain="gradcam")
    job_id = hand.succeed()
    with transaction(database) as session:
        stranger_key = tenants.create_key(session, tenants.create(session, "stranger").id)
    asked = 0
    with client_of(url, stranger_key) as stranger:
        for method, path in operations(create_app(settings)):
            if "{job_id}" not in path:
                continue
            asked += 1
            answer = ask(stranger, method, path, job_id)
            never = ask(stranger, method, path, "job_01JDJ5W1M0QZ8N4T7X2B9C3D6F")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)
            assert answer.json()["detail"] == never.json()["detail"]
        assert stranger.get("/v1/jobs").json()["jobs"] == []
        assert stranger.get("/v1/jobs", params={"cursor": job_id}).json()["jobs"] == []
        assert stranger.get(f"/v1/jobs/{job_id}", params={"wait": 5}).elapsed.total_seconds() < 3
    assert asked >= 6
    assert client.get(f"/v1/jobs/{job_id}").json()["explanations"]["gradcam"]["status"] == "queued"


@pytest.mark.parametrize(("scopes", "allowed"), [(["read"], "GET"), (["submit"], "POST DELETE"), (["admin"], "")])
def test_a_key_does_what_its_scopes_say_and_no_more(
    database: Database, settings: Settings, tenant_id: str, submit: Submit, scopes: list[str], allowed: str
) -> None:
    job_id = submit()["id"]
    with transaction(database) as session:
        limited = tenants.create_key(session, tenant_id, scopes)
    brief = settings.model_copy(update={"max_wait_s": 0.1})
    with serving(brief) as again, client_of(again, limited) as client:
        for method, path in operations(create_app(settings)):
            if path not in OPEN:
                answer = ask(client, method, path, job_id)
                assert (answer.status_code == 403) == (method not in allowed.split()), (method, path, answer.text)
                assert answer.status_code != 403 or answer.json()["code"] == "forbidden"


def _revoke(database: Database, key: str) -> None:
    with transaction(database) as session:
        row = session.scalars(select(ApiKey).where(ApiKey.digest == keys.digest(key))).one()
        tenants.revoke_key(session, row.id)


def _expire(database: Database, key: str) -> None:
    with transaction(database) as session:
        past = clock(session) - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.digest == keys.digest(key)).values(expires_at=past))


@both
@pytest.mark.parametrize(("end", "code"), [(_revoke, "unauthenticated"), (_expire, "key_expired")])
@pytest.mark.usefixtures("believed")
def test_a_key_that_ended_opens_nothing(
    client: httpx.Client, database: Database, key: str, end: Callable[[Database, str], None], code: str
) -> None:
    assert client.get("/v1/jobs").status_code == 200
    end(database, key)
    answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (401, code)


def test_a_key_is_believed_for_seconds_and_no_longer(
    client: httpx.Client, database: Database, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deps, "KEY_CACHE_S", 2.0)
    assert client.get("/v1/jobs").status_code == 200
    _revoke(database, key)
    assert client.get("/v1/jobs").status_code == 200
    time.sleep(2.1)
    assert client.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize("wrong", ["hlm_" + "A" * 43, "\u00fc", "x" * 5000, "a b", "' OR 1=1 --"])
def test_a_key_nobody_made_is_unknown(anonymous: httpx.Client, wrong: str) -> None:
    answer = anonymous.get("/v1/jobs", headers={b"Authorization": b"Bearer " + wrong.encode("latin-1")})  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_no_key_is_stored(database: Database, key: str) -> None:
    with transaction(database) as session:
        row = session.scalars(select(ApiKey)).one()
        held = [str(getattr(row, column.name)) for column in ApiKey.__table__.columns]
    assert not any(key in value for value in held)
    assert key.startswith(row.prefix)
    assert len(row.prefix) < len(key) / 3
