"""Keys open what their scopes say, on every route; they are made, rotated, expire and end, and leave a trace."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event, select, update

from api import deps, keyuse
from api.app import create_app
from shared import keys, tenants
from shared.db import Database, clock, reading, transaction
from shared.deeds import page as deeds_of
from shared.errors import Conflict, Invalid, Unauthenticated
from shared.models import TEST, ApiKey
from shared.settings import Settings
from tests.api.conftest import Submit, both, client_of, serving
from tests.api.walk import OPEN, Operation, ask, never, operations
from tests.servers import until


def scope_of(operation: Operation) -> str:
    """The scope that a key needs for an operation."""
    if operation.path.startswith(("/v1/keys", "/v1/audit")) or str(operation) == "DELETE /v1/jobs/{job_id}":
        return "admin"
    if operation.method == "GET":
        return "read"
    return "admin" if operation.path.startswith("/v1/webhooks") else "submit"


def row_of(database: Database, key: str) -> ApiKey:
    with reading(database) as session:
        return session.scalars(select(ApiKey).where(ApiKey.digest == keys.digest(key))).one()


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is looked up at every request, so that a test need not wait."""
    monkeypatch.setattr(deps, "KEY_CACHE_S", 0.0)


# ---------------------------------------------------------------- what opens what


@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic eA=="}, {"Authorization": "Bearer"}])
def test_every_route_but_the_open_ones_needs_a_key(
    anonymous: httpx.Client, settings: Settings, header: dict[str, str]
) -> None:
    app, asked = create_app(settings), 0
    for operation in operations(app):
        answer = ask(anonymous, app, operation, never(operation), header)
        if operation.path in OPEN:
            assert answer.status_code != 401, operation
            continue
        asked += 1
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), operation
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert asked >= 18


@pytest.mark.parametrize("scope", tenants.SCOPES)
def test_a_key_does_what_its_scope_says_and_no_more(
    database: Database, settings: Settings, tenant_id: str, submit: Submit, scope: str
) -> None:
    values = {"job_id": submit()["id"]}
    with transaction(database) as session:
        limited = tenants.create_key(session, tenant_id, [scope])
    brief, opened = settings.model_copy(update={"max_wait_s": 0.1}), 0
    app = create_app(brief)
    with serving(brief, app) as url, client_of(url, limited) as client:
        for operation in operations(app):
            if operation.path in OPEN:
                continue
            answer = ask(client, app, operation, never(operation) | values)
            opens = scope_of(operation) == scope
            opened += opens
            assert (answer.status_code != 403) == opens, (operation, answer.text)
            assert opens or answer.json()["code"] == "forbidden"
    assert opened >= 5


def _revoke(database: Database, key: str) -> None:
    with transaction(database) as session:
        tenants.revoke_key(session, row_of(database, key).id)


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
    assert deps.KEY_CACHE_S <= 5
    monkeypatch.setattr(deps, "KEY_CACHE_S", 2.0)
    assert client.get("/v1/jobs").status_code == 200
    _revoke(database, key)
    assert client.get("/v1/jobs").status_code == 200
    until(lambda: client.get("/v1/jobs").status_code == 401, within_s=20)


@pytest.mark.parametrize("wrong", ["hlm_" + "A" * 43, "\u00fc", "x" * 5000, "a b", "' OR 1=1 --"])
def test_a_key_nobody_made_is_unknown(anonymous: httpx.Client, wrong: str) -> None:
    answer = anonymous.get("/v1/jobs", headers={b"Authorization": b"Bearer " + wrong.encode("latin-1")})  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_no_key_is_stored(database: Database, key: str) -> None:
    row = row_of(database, key)
    held = [str(getattr(row, column.name)) for column in ApiKey.__table__.columns]
    assert not any(key in value for value in held)
    assert key.startswith(row.prefix)
    assert len(row.prefix) < len(key) / 3


# ---------------------------------------------------------------- making, rotating, revoking over HTTP


def test_an_admin_makes_a_key_that_is_shown_once(client: httpx.Client, url: str, database: Database) -> None:
    wanted = {"name": "worklist", "scopes": ["read", "submit", "read"], "expires_at": "2099-01-01T00:00:00"}
    answer = client.post("/v1/keys", json=wanted)
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert (made["name"], made["scopes"], made["mode"]) == ("worklist", ["submit", "read"], "live")
    assert made["expires_at"] == "2099-01-01T00:00:00Z"
    with client_of(url, made["key"]) as other:
        assert other.get("/v1/jobs").status_code == 200
        assert other.get("/v1/keys").status_code == 403
    listed = client.get("/v1/keys").json()["keys"]
    assert [row["id"] for row in listed][-1] == made["id"]
    assert "key" not in listed[-1]
    assert made["key"] not in client.get("/v1/keys").text


def test_keys_come_in_pages(client: httpx.Client, database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        made = [tenants.issue_key(session, tenant_id, name=str(number)).row.id for number in range(4)]
    seen, cursor = [], None
    while True:
        page = client.get("/v1/keys", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["keys"]) <= 2
        seen += [row["id"] for row in page["keys"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen[1:] == made
    assert client.get("/v1/keys", params={"cursor": "yesterday"}).json()["code"] == "invalid_cursor"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"scopes": []},
        {"scopes": ["all"]},
        {"scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"},
        {"scopes": ["read"], "expires_at": "9999-12-31T23:59:59-23:00"},
        {"scopes": ["read"], "expires_at": "soon"},
        {"scopes": ["read"], "mode": "dry"},
        {"scopes": ["read"], "name": "a\x00b"},
        {"scopes": ["read"], "name": "x" * 129},
        {"scopes": ["read"], "colour": "red"},
        [],
    ],
)
def test_a_key_that_cannot_be_is_not_made(client: httpx.Client, wrong: Any) -> None:
    before = len(client.get("/v1/keys").json()["keys"])
    answer = client.post("/v1/keys", json=wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert len(client.get("/v1/keys").json()["keys"]) == before


@both
@pytest.mark.usefixtures("believed")
def test_both_keys_open_until_the_overlap_ends(client: httpx.Client, url: str, database: Database, key: str) -> None:
    old = row_of(database, key)
    answer = client.post(f"/v1/keys/{old.id}/rotate", json={"overlap_hours": 2})
    made = answer.json()
    assert answer.status_code == 201
    assert [made[part] for part in ("name", "scopes", "mode")] == [old.name, old.scopes, old.mode]
    assert made["expires_at"] is None
    with client_of(url, made["key"]) as new:
        assert new.get("/v1/jobs").status_code == client.get("/v1/jobs").status_code == 200
        replaced = row_of(database, key)
        assert replaced.replaced_by == made["id"]
        assert timedelta(hours=1.9) < replaced.expires_at - datetime.now(UTC) < timedelta(hours=2.1)
        _expire(database, key)
        assert client.get("/v1/jobs").json()["code"] == "key_expired"
        assert new.get("/v1/jobs").status_code == 200


def test_a_key_is_rotated_once_and_while_it_lives(client: httpx.Client, database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        first, second = (tenants.issue_key(session, tenant_id).row.id for _ in range(2))
    assert client.post(f"/v1/keys/{first}/rotate").status_code == 201
    assert client.post(f"/v1/keys/{first}/rotate").json()["code"] == "key_replaced"
    assert client.delete(f"/v1/keys/{second}").json()["revoked_at"] is not None
    assert client.post(f"/v1/keys/{second}/rotate").json()["code"] == "key_ended"
    for wrong in (-1, 10**6, "long", None):
        assert client.post(f"/v1/keys/{first}/rotate", json={"overlap_hours": wrong}).status_code == 422


def test_a_key_that_is_made_to_expire_stays_so(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        expires_at = clock(session) + timedelta(days=90)
        old = tenants.issue_key(session, tenant_id, expires_at=expires_at).row
        new = tenants.rotate_key(session, old.id, timedelta(days=1000)).row
        assert old.expires_at == expires_at  # an overlap never prolongs
        assert new.expires_at is not None
        assert abs(new.expires_at - expires_at) < timedelta(minutes=1)


@both
def test_of_two_who_rotate_at_once_one_does(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        key_id = tenants.issue_key(session, tenant_id).row.id
    outcomes = []

    def rotate() -> None:
        try:
            with transaction(database) as session:
                tenants.rotate_key(session, key_id, timedelta(hours=1))
            outcomes.append("made")
        except Conflict as error:
            outcomes.append(error.code)

    _at_once(rotate, 4)
    assert sorted(outcomes) == ["key_replaced"] * 3 + ["made"]


def _at_once(act: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=act) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("believed")
def test_a_revoked_key_stays_revoked_and_says_since_when(client: httpx.Client, url: str) -> None:
    made = client.post("/v1/keys", json={"scopes": ["read"]}).json()
    first, again = (client.delete(f"/v1/keys/{made['id']}") for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["revoked_at"] == again.json()["revoked_at"] is not None
    with client_of(url, made["key"]) as gone:
        assert gone.get("/v1/jobs").status_code == 401


def test_a_test_key_never_comes_by_a_live_one(client: httpx.Client, url: str, database: Database, key: str) -> None:
    made = client.post("/v1/keys", json={"scopes": ["admin"], "mode": TEST}).json()
    assert made["key"].startswith("hlm_test_")
    live = row_of(database, key).id
    with client_of(url, made["key"]) as tester:
        for answer in (
            tester.post("/v1/keys", json={"scopes": ["admin"]}),
            tester.post(f"/v1/keys/{live}/rotate"),
            tester.delete(f"/v1/keys/{live}"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert tester.post("/v1/keys", json={"scopes": ["read"], "mode": TEST}).status_code == 201
        assert tester.post(f"/v1/keys/{made['id']}/rotate").json()["mode"] == TEST
    assert row_of(database, key).revoked_at is None


def test_who_did_it_stands_in_the_audit_log(client: httpx.Client, database: Database, tenant_id: str, key: str) -> None:
    who = row_of(database, key).id
    made = client.post("/v1/keys", json={"name": "pacs", "scopes": ["read"]}, headers={"X-Request-Id": "one"}).json()
    newer = client.post(f"/v1/keys/{made['id']}/rotate", headers={"X-Request-Id": "two"}).json()
    client.delete(f"/v1/keys/{newer['id']}", headers={"X-Request-Id": "three"})
    client.delete(f"/v1/keys/{newer['id']}")
    with reading(database) as session:
        revoked, rotated, created, *_ = deeds_of(session, tenant_id, limit=10).deeds
    assert [(d.action, d.subject, d.request_id) for d in (created, rotated, revoked)] == [
        ("key.created", made["id"], "one"),
        ("key.rotated", made["id"], "two"),
        ("key.revoked", newer["id"], "three"),
    ]
    assert {d.actor for d in (created, rotated, revoked)} == {who}
    assert created.detail == {"name": "pacs", "scopes": ["read"], "mode": "live", "expires_at": None}
    assert rotated.detail["replaced_by"] == newer["id"]


# ---------------------------------------------------------------- when a key was used


def test_nobody_makes_a_key_that_has_expired(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        with pytest.raises(Invalid):
            tenants.issue_key(session, tenant_id, expires_at=clock(session))
        made = tenants.issue_key(session, tenant_id, expires_at=clock(session) + timedelta(milliseconds=20))
    time.sleep(0.03)
    with reading(database) as session, pytest.raises(Unauthenticated, match="expired"):
        tenants.authenticate(session, made.key)


@both
def test_a_use_is_noted_beside_the_requests(
    settings: Settings, database: Database, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    monkeypatch.setattr(tenants, "USE_NOTED_S", 0.05)
    with serving(settings) as url, client_of(url, key) as client:
        assert row_of(database, key).last_used_at is None
        assert client.get("/v1/jobs").status_code == 200
        noted = until(lambda: row_of(database, key).last_used_at, within_s=20, what="a use that is noted")
    assert noted > before


def test_what_was_used_is_noted_when_the_process_ends(database: Database, settings: Settings, key: str) -> None:
    with serving(settings) as url, client_of(url, key) as client:
        assert client.get("/v1/jobs").status_code == 200
        assert row_of(database, key).last_used_at is None
    assert row_of(database, key).last_used_at is not None


@both
def test_a_use_is_written_once_a_minute_and_for_all_keys_at_once(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        ids = [tenants.issue_key(session, tenant_id).row.id for _ in range(3)]
        fresh, stale = clock(session) - timedelta(seconds=59), clock(session) - timedelta(seconds=61)
        for key_id, moment in zip(ids, (fresh, stale, None), strict=True):
            session.get_one(ApiKey, key_id).last_used_at = moment
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with transaction(database) as session:
        tenants.note_use(session, ids)
    assert sum(statement.startswith("UPDATE api_keys") for statement in statements) == 1
    with reading(database) as session:
        seen = [session.get_one(ApiKey, key_id).last_used_at for key_id in ids]
    assert seen[0] == fresh
    assert all(moment is not None and moment > fresh for moment in seen[1:])


async def _noted(parts: deps.Parts) -> set[str]:
    await keyuse.note(parts)
    return parts.used_keys


def test_a_database_that_is_away_is_told_later(database: Database, settings: Settings, tenant_id: str) -> None:
    with transaction(database) as session:
        key_id = tenants.issue_key(session, tenant_id).row.id
    away = deps.open_parts(settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"}))
    away.used_keys.add(key_id)
    assert asyncio.run(_noted(away)) == {key_id}
    parts = deps.open_parts(settings)
    parts.used_keys.add(key_id)
    assert asyncio.run(_noted(parts)) == set()
    with reading(database) as session:
        assert session.get_one(ApiKey, key_id).last_used_at is not None
