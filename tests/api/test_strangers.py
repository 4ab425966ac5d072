"""What belongs to another tenant is not there: every route is called with a stranger's ids, and must not know them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from api.app import create_app
from api.deps import PartsDep, ReaderDep
from shared import batches, deeds, destinations, jobs, tenants
from shared.columns import Base
from shared.db import Database, reading, transaction
from shared.models import TEST, ApiKey, Delivery, Event, Job
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, both, client_of, serving
from tests.api.walk import Operation, ask, never, operations


@dataclass(frozen=True)
class World:
    """A tenant with one of everything, by the names that paths give it, and the client of a stranger."""

    app: FastAPI
    owner: httpx.Client
    stranger: httpx.Client
    owner_id: str
    values: dict[str, str]


def values_of(owner: httpx.Client, hand: Hand, database: Database, settings: Settings, owner_id: str) -> dict[str, str]:
    """One object of the owner for every name that a path may leave open."""
    with transaction(database) as session:
        told = {"url": "https://192.0.2.1/hook", "events": [], "description": "theirs", "by": deeds.HILUM}
        webhook_id = destinations.create(session, owner_id, **told).id
        key_id = tenants.issue_key(session, owner_id, name="theirs").row.id
        batch_id = batches.create(session, tenant_id=owner_id, batch_id=batches.new_id(), total=1).id
        details = {"blob_key": "theirs", "media_type": "image/png", "size": 1, "sha256": "0" * 64}
        jobs.submit(session, settings, tenant_id=owner_id, job_id=jobs.new_id(), batch_id=batch_id, **details)
    form = {"explain": "gradcam", "external_id": "theirs", "priority": "stat"}
    assert owner.post("/v1/jobs", files={"file": FILM}, data=form).status_code == 202
    job_id = hand.succeed()
    with reading(database) as session:
        delivery_id = session.scalars(select(Delivery.id)).one()
    made = {"job_id": job_id, "key_id": key_id, "batch_id": batch_id}
    made |= {"webhook_id": webhook_id, "delivery_id": delivery_id}
    return {**made, "name": "lungs.png", "method": "gradcam"}


@pytest.fixture
def world(database: Database, settings: Settings, hand: Hand, tenant_id: str) -> Iterator[World]:
    """The owner is the tenant of the other fixtures."""
    settings = settings.model_copy(update={"max_wait_s": 0.1})
    app = create_app(settings)
    with transaction(database) as session:
        own_key = tenants.create_key(session, tenant_id)
        other_key = tenants.create_key(session, tenants.create(session, "stranger").id)
    with serving(settings, app) as url, client_of(url, own_key) as owner, client_of(url, other_key) as stranger:
        values = values_of(owner, hand, database, settings, tenant_id)
        yield World(app, owner, stranger, tenant_id, values)


def reached(world: World) -> list[str]:
    """The operations that tell a stranger's id from one that never was, or do not refuse it."""
    found = []
    for operation in operations(world.app):
        if operation.parameters:
            unknown = set(operation.parameters) - set(world.values)
            assert not unknown, f"{operation}: say in values_of what {', '.join(unknown)} of the owner is"
            answer = ask(world.stranger, world.app, operation, world.values)
            other = ask(world.stranger, world.app, operation, never(operation))
            found += [f"{operation}: {answer.status_code}"] * (not _alike(answer, other))
    return found


def _alike(answer: httpx.Response, other: httpx.Response) -> bool:
    if {answer.status_code, other.status_code} != {404}:
        return False
    return [answer.json()[part] for part in ("code", "detail")] == [other.json()[part] for part in ("code", "detail")]


def rows(database: Database, tenant_id: str) -> dict[str, list[Any]]:
    """Everything that the database holds of a tenant, but when its keys were used and where its events stand."""
    held = {}
    with reading(database) as session:
        for name, table in Base.metadata.tables.items():
            if "tenant_id" in table.c:
                columns = [column for column in table.c if column.name not in ("last_used_at", "seq")]
                mine = select(*columns).where(table.c.tenant_id == tenant_id).order_by(*table.primary_key.columns)
                held[name] = list(session.execute(mine))
    return held


@both
def test_every_route_denies_what_is_another_tenants(world: World, database: Database) -> None:
    before = rows(database, world.owner_id)
    assert reached(world) == []
    assert rows(database, world.owner_id) == before
    assert sum(bool(operation.parameters) for operation in operations(world.app)) >= 20
    assert len(before["jobs"]) == 2


@both
def test_a_test_key_changes_nothing_that_is_live(world: World, database: Database) -> None:
    """With every scope it may read, and make what is a test; a test event harms no endpoint."""
    with transaction(database) as session:
        key = tenants.issue_key(session, world.owner_id, ["submit", "read", "admin"], "test", mode=TEST).key
    harmless = "POST /v1/webhooks/{webhook_id}/test"
    before = rows(database, world.owner_id)
    with client_of(str(world.owner.base_url), key) as client:
        writing = [one for one in operations(world.app) if one.parameters and one.method != "GET"]
        answers = {str(one): ask(client, world.app, one, world.values) for one in writing if str(one) != harmless}
        made = client.post("/v1/webhooks", json={"url": "https://192.0.2.1/hook"})
    refused = [(name, answer.text) for name, answer in answers.items() if answer.status_code != 403]
    assert refused == []
    assert len(answers) >= 12
    assert made.status_code == 403
    assert rows(database, world.owner_id) == before


def test_the_owner_reaches_what_the_stranger_does_not(world: World) -> None:
    """Were the ids wrong, the test above would prove nothing."""
    paths = ["/v1/jobs/{job_id}", "/v1/jobs/{job_id}/artifacts/{name}", "/v1/batches/{batch_id}"]
    for path in (*paths, "/v1/webhooks/{webhook_id}", "/v1/webhooks/{webhook_id}/deliveries"):
        assert world.owner.get(path.format_map(world.values)).status_code == 200
    assert world.owner.post("/v1/keys/{key_id}/rotate".format_map(world.values)).status_code == 201


def test_no_list_shows_what_is_another_tenants(world: World) -> None:
    secrets = [value for name, value in world.values.items() if name.endswith("_id")]
    listed = 0
    for operation in operations(world.app):
        if operation.method != "GET" or operation.parameters or not operation.path.startswith("/v1/"):
            continue
        listed += 1
        for query in ({}, *({name: value} for value in secrets for name in ("cursor", "batch", "external_id"))):
            answer = ask(world.stranger, world.app, operation, {}, **query)
            assert answer.status_code in (200, 422), (operation, query, answer.text)
            assert not [value for value in (*secrets, "theirs") if f'"{value}"' in answer.text], (operation, query)
    assert listed >= 7


def test_anothers_event_is_no_place_in_a_stream(world: World, database: Database) -> None:
    with reading(database) as session:
        theirs = session.scalars(select(Event.id)).one()
    events = Operation("GET", "/v1/events")
    answers = [
        ask(world.stranger, world.app, events, {}, {"Last-Event-ID": event_id}).json()
        for event_id in (theirs, f"{theirs[:14]}{'0' * 16}")
    ]
    assert [answer["events"] for answer in answers] == [[], []]
    assert theirs not in str(answers)


def test_a_stranger_cannot_rotate_or_revoke_by_the_ledger_either(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        other_id = tenants.create(session, "stranger").id
        key_id = tenants.issue_key(session, tenant_id).row.id
    for act in (tenants.key_of, lambda session, tenant, key: tenants.revoke_key(session, key, tenant_id=tenant)):
        with pytest.raises(tenants.NotFound), transaction(database) as session:
            act(session, other_id, key_id)
    with reading(database) as session:
        assert session.get_one(ApiKey, key_id).revoked_at is None
        assert deeds.page(session, other_id, limit=10).deeds[0].action == "tenant.created"


# ---------------------------------------------------------------- what this test itself would notice


def test_it_notices_a_route_that_forgets_the_tenant(world: World) -> None:
    def leaky(job_id: str, parts: PartsDep, tenant_id: ReaderDep) -> dict[str, str]:
        with reading(parts.database) as session:
            return {"status": session.get_one(Job, job_id).status}

    world.app.get("/v1/leaky/{job_id}")(leaky)
    assert reached(world) == ["GET /v1/leaky/{job_id}: 200"]


def test_it_notices_a_route_that_tells_other_peoples_ids_apart(world: World) -> None:
    def telling(job_id: str, parts: PartsDep, tenant_id: ReaderDep) -> None:
        with reading(parts.database) as session:
            exists = session.get(Job, job_id) is not None
        raise tenants.NotFound("That job is not yours." if exists else "There is no such job.")

    world.app.get("/v1/telling/{job_id}")(telling)
    assert reached(world) == ["GET /v1/telling/{job_id}: 404"]


def test_it_notices_an_id_that_it_cannot_fill(world: World) -> None:
    def new(thing_id: str, tenant_id: ReaderDep) -> None:
        """Whatever it does."""

    world.app.get("/v1/things/{thing_id}")(new)
    with pytest.raises(AssertionError, match="thing_id"):
        reached(world)


def test_it_notices_a_body_that_it_cannot_make(world: World) -> None:
    def new(job_id: str, wanted: dict[str, str], tenant_id: ReaderDep) -> None:
        """Whatever it does."""

    world.app.post("/v1/jobs/{job_id}/things")(new)
    with pytest.raises(AssertionError, match="needs a body"):
        reached(world)
    assert Operation("POST", "/v1/jobs/{job_id}/things") in list(operations(world.app))
