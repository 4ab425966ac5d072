"""GET /v1/jobs: every job once, newest first, whatever is asked for and whatever comes in meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from shared import batches, jobs
from shared.db import Database, transaction
from shared.settings import Settings
from tests.api.conftest import Hand, Submit, both
from tests.values import analysis


def ids(page: Any) -> list[str]:
    return [job["id"] for job in page["jobs"]]


def listed(client: httpx.Client, **params: str) -> list[str]:
    answer = client.get("/v1/jobs", params=params)
    assert answer.status_code == 200, answer.text
    return ids(answer.json())


@both
def test_pages_hold_every_job_once(client: httpx.Client, submit: Submit) -> None:
    made = [submit()["id"] for _ in range(5)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    submit()  # newer than the first page: it moves nothing
    second = client.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    last = client.get("/v1/jobs", params={"limit": 2, "cursor": second["next_cursor"]}).json()
    assert ids(first) + ids(second) + ids(last) == made[::-1]
    assert last["next_cursor"] is None


@both
def test_filters_choose(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    routine = submit(external_id="a")["id"]
    stat = submit(priority="stat", external_id="b")["id"]
    hand.succeed(said=analysis(top_class="normal"))  # the stat was due first
    assert listed(client) == [stat, routine]
    assert listed(client, status="succeeded") == [stat]
    assert listed(client, status="queued") == [routine]
    assert listed(client, top_class="normal") == [stat]
    assert listed(client, top_class="covid19") == []
    assert listed(client, priority="stat") == [stat]
    assert listed(client, external_id="a") == [routine]
    assert listed(client, external_id="a", priority="stat") == []


@both
def test_a_batch_and_a_mode_choose(
    client: httpx.Client, submit: Submit, database: Database, settings: Settings, tenant_id: str
) -> None:
    alone = submit()["id"]
    of_batch, rehearsed = jobs.new_id(), jobs.new_id()
    stored = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "0" * 64, "tenant_id": tenant_id}
    with transaction(database) as session:
        batches.create(session, tenant_id=tenant_id, batch_id="bat_1", total=1)
        jobs.submit(session, settings, job_id=of_batch, batch_id="bat_1", **stored)
        jobs.submit(session, settings, job_id=rehearsed, mode="test", **stored)
    assert listed(client, batch="bat_1") == [of_batch]
    assert listed(client, batch="bat_2") == []
    assert listed(client, mode="test") == [rehearsed]
    assert set(listed(client, mode="live")) == {alone, of_batch}
    shown = {job["id"]: (job["batch"], job["test"]) for job in client.get("/v1/jobs").json()["jobs"]}
    assert shown == {alone: (None, False), of_batch: ("bat_1", False), rehearsed: (None, True)}


@both
def test_bounds_in_time_are_exclusive_and_mean_utc_without_a_zone(client: httpx.Client, submit: Submit) -> None:
    first, second = submit(), submit()
    moment = datetime.fromisoformat(second["created_at"])
    assert listed(client, created_before=moment.isoformat()) == [first["id"]]
    assert listed(client, created_after=moment.replace(tzinfo=None).isoformat()) == []
    assert listed(client, created_after=(moment - timedelta(days=1)).isoformat()) == [second["id"], first["id"]]
    assert listed(client, created_after=moment.astimezone(None).isoformat()) == []


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "many"},
        {"status": "done"},
        {"priority": "asap"},
        {"created_after": "yesterday"},
        {"created_after": "0001-01-01T00:00:00+14:00"},
        {"created_before": "9999-12-31T23:59:59-12:00"},
        {"mode": "demo"},
        {"cursor": "job_x"},
        {"cursor": "' OR 1=1 --"},
        {"external_id": "a\x00b"},
    ],
)
def test_a_wrong_parameter_is_refused(client: httpx.Client, params: dict[str, str]) -> None:
    answer = client.get("/v1/jobs", params=params)
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in ("invalid_request", "invalid_cursor")
