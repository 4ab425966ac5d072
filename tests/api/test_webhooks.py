"""Webhooks over HTTP: who may do what, what is shown and what is not, and what can be asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from standardwebhooks import Webhook

from api import webhook_examples
from shared import deliveries, destinations, tenants
from shared.db import Database, reading, transaction
from shared.deliveries import Answer
from shared.models import Deed, Delivery, Destination
from shared.settings import Settings
from shared.webhook_views import DeliveryPage, DeliveryView, WebhookList, WebhookView, WebhookWithSecret
from tests.api.conftest import Hand, Submit, client_of

URL = "https://hooks.example/hilum"
NEVER = "01JDJ5W1M0QZ8N4T7X2B9C3D6F"
NOW = datetime.now(UTC)
REFUSED = Answer(NOW, 41, 503, "unsuccessful", "The receiver answered 503.", "down for maintenance")

Made = dict[str, Any]
Make = Callable[..., Made]


@pytest.fixture
def make(client: httpx.Client) -> Make:
    """Make a webhook and return it, with its secret."""

    def one(**fields: Any) -> Made:
        answer = client.post("/v1/webhooks", json={"url": URL, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return one


@pytest.fixture
def looking(url: str, database: Database, tenant_id: str) -> Iterator[httpx.Client]:
    """A client whose key may read, and submit, and no more."""
    with transaction(database) as session:
        key = tenants.create_key(session, tenant_id, ["read", "submit"])
    with client_of(url, key) as found:
        yield found


@pytest.fixture
def attempt(database: Database, settings: Settings) -> Callable[[Answer], str]:
    """Let the next delivery meet `answer`, as a worker does; its id."""

    def one(answer: Answer) -> str:
        with transaction(database) as session:
            ((row, _),) = deliveries.ready(session, 1, held={}, share=4)
            ((claim, _),) = deliveries.claim(session, [row], lease_s=30)
            deliveries.settle(session, settings, claim, answer)
        return claim.id

    return one


def log_of(client: httpx.Client, webhook_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/webhooks/{webhook_id}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["deliveries"]


# ---------------------------------------------------------------- making and reading


def test_a_secret_is_shown_once_and_signs(client: httpx.Client, make: Make, database: Database) -> None:
    made = make(events=["job.failed", "job.failed"], description="the reading room")
    secret = made.pop("secret")
    assert Webhook(secret).sign("evt_1", NOW, "{}").startswith("v1,")
    assert (made["url"], made["events"], made["enabled"]) == (URL, ["job.failed"], True)
    one, many = client.get(f"/v1/webhooks/{made['id']}"), client.get("/v1/webhooks")
    assert one.json() == made
    assert many.json() == {"webhooks": [made]}
    for answer in (one, many, client.get(f"/v1/webhooks/{made['id']}/deliveries")):
        assert secret not in answer.text
    with reading(database) as session:
        assert session.get_one(Destination, made["id"]).secrets == [secret]
        assert secret not in str([deed.detail for deed in session.scalars(select(Deed))])


def test_the_answer_says_where_it_is_and_is_kept_by_no_cache(client: httpx.Client) -> None:
    answer = client.post("/v1/webhooks", json={"url": URL})
    assert client.get(answer.headers["location"]).json()["id"] == answer.json()["id"]
    assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "http://hooks.example/"}, "invalid_url"),
        ({"url": "https://u:p@hooks.example/"}, "invalid_url"),
        ({"url": "https://10.0.0.1/"}, "address_not_allowed"),
        ({"url": "https://[::ffff:127.0.0.1]/"}, "address_not_allowed"),
        ({"url": URL + "a" * 2048}, "invalid_request"),
        ({"url": URL, "events": ["job.exploded"]}, "invalid_request"),
        ({"url": URL, "secret": "whsec_mine"}, "invalid_request"),
        ({"url": URL, "description": "a" * 257}, "invalid_request"),
        ({"url": URL, "description": "a\x00b"}, "invalid_request"),
        ({"url": URL, "description": "\ud800"}, "invalid_request"),
        ({"url": "https://\ud800.example/"}, "invalid_request"),
        ({}, "invalid_request"),
        ([], "invalid_request"),
    ],
)
def test_what_cannot_be_a_webhook_is_refused_and_leaves_nothing(client: httpx.Client, body: Any, code: str) -> None:
    escaped = json.dumps(body)  # also what is no text, such as half a surrogate pair
    answer = client.post("/v1/webhooks", content=escaped, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert client.get("/v1/webhooks").json() == {"webhooks": []}


def test_there_are_only_so_many(client: httpx.Client, make: Make) -> None:
    for _ in range(destinations.MOST_PER_TENANT):
        last = make()
    answer = client.post("/v1/webhooks", json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhooks")
    assert client.delete(f"/v1/webhooks/{last['id']}").status_code == 204
    make()


def test_only_an_admin_changes_and_a_reader_looks(client: httpx.Client, looking: httpx.Client, make: Make) -> None:
    path = f"/v1/webhooks/{make()['id']}"
    delivery_id = client.post(f"{path}/test").json()["id"]
    for read in ("/v1/webhooks", path, f"{path}/deliveries"):
        assert looking.get(read).status_code == 200
    again = f"{path}/deliveries/{delivery_id}/redeliver"
    posts = ("/v1/webhooks", f"{path}/enable", f"{path}/rotate-secret", f"{path}/test", f"{path}/redeliver", again)
    bodies = {"/v1/webhooks": {"url": URL}, f"{path}/redeliver": {"since": "2026-01-01"}}
    answers = [looking.post(post, json=bodies.get(post)) for post in posts]
    answers += [looking.patch(path, json={"enabled": False}), looking.delete(path)]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(403, "forbidden")}
    assert client.get(path).json()["enabled"] is True


# ---------------------------------------------------------------- changing


def test_a_change_changes_what_it_names(client: httpx.Client, make: Make) -> None:
    made = make(events=["job.failed"], description="old")
    path = f"/v1/webhooks/{made['id']}"
    changed = client.patch(path, json={"url": "https://Elsewhere.example", "events": []}).json()
    assert (changed["url"], changed["events"], changed["description"]) == ("https://elsewhere.example/", [], "old")
    assert client.patch(path, json={}).json() == changed
    assert client.patch(path, json={"url": None, "description": "new"}).json() == {**changed, "description": "new"}
    for bad in ({"url": "http://a.example/"}, {"secret": "a"}, {"enabled": "perhaps"}):
        assert client.patch(path, json=bad).status_code == 422
    assert client.get(path).json()["url"] == "https://elsewhere.example/"


def test_what_is_deleted_is_gone_and_hears_nothing(
    client: httpx.Client, make: Make, submit: Submit, hand: Hand, database: Database
) -> None:
    made, other = make(), make()
    path = f"/v1/webhooks/{made['id']}"
    client.post(f"{path}/test")
    delivery_id = log_of(client, made["id"])[0]["id"]
    assert client.delete(path).status_code == 204
    gone = [client.get(path), client.get(f"{path}/deliveries"), client.patch(path, json={}), client.delete(path)]
    gone += [client.post(f"{path}/{verb}") for verb in ("test", "enable", "rotate-secret")]
    gone += [client.post(f"{path}/deliveries/{delivery_id}/redeliver")]
    assert {answer.status_code for answer in gone} == {404}
    assert [row["id"] for row in client.get("/v1/webhooks").json()["webhooks"]] == [other["id"]]
    submit()
    hand.succeed()
    with reading(database) as session:
        (left,) = session.scalars(select(Delivery).where(Delivery.destination_id == made["id"]))
        assert (left.status, left.error["code"]) == ("canceled", "webhook_disabled")  # type: ignore[index]
        assert session.get_one(Destination, made["id"]).secrets == []


@pytest.mark.parametrize("path", [f"/v1/webhooks/whk_{NEVER}", "/v1/webhooks/whk_1", "/v1/webhooks/%00"])
def test_one_that_never_was_is_not_found(client: httpx.Client, path: str) -> None:
    for answer in (client.get(path), client.delete(path), client.post(f"{path}/test")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_rotation_shows_the_new_secret_and_names_the_end_of_the_old(
    client: httpx.Client, make: Make, database: Database
) -> None:
    made = make()
    path = f"/v1/webhooks/{made['id']}"
    rotated = client.post(f"{path}/rotate-secret", json={"overlap_hours": 2}).json()
    assert rotated["secret"] not in ("", made["secret"])
    left = datetime.fromisoformat(rotated["old_secret_until"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < left <= timedelta(hours=2)
    with reading(database) as session:
        row = session.get_one(Destination, made["id"])
        assert destinations.live_secrets(row, datetime.now(UTC)) == [rotated["secret"], made["secret"]]
    by_default = client.post(f"{path}/rotate-secret").json()
    assert datetime.fromisoformat(by_default["old_secret_until"]) - datetime.now(UTC) > timedelta(hours=23)
    for bad in (-1, 169, "soon"):
        assert client.post(f"{path}/rotate-secret", json={"overlap_hours": bad}).status_code == 422


# ---------------------------------------------------------------- deliveries


def test_a_job_that_ends_is_in_the_log_of_whom_wants_it(
    client: httpx.Client, make: Make, submit: Submit, hand: Hand
) -> None:
    wants, other = make(events=["job.succeeded"])["id"], make(events=["job.failed"])["id"]
    job_id = submit(external_id="patient-7", metadata='{"name": "Doe"}')["id"]
    hand.succeed()
    (delivery,) = log_of(client, wants)
    event = delivery.pop("event")
    assert (event["type"], event["data"], event["test"]) == ("job.succeeded", {"job": job_id}, False)
    assert delivery["status"] == "queued"
    assert (delivery["next_attempt_at"], delivery["attempts"]) == (delivery["created_at"], [])
    assert log_of(client, other) == []
    for said in ("patient-7", "Doe"):
        assert said not in client.get(f"/v1/webhooks/{wants}/deliveries").text


def test_the_log_shows_every_try(client: httpx.Client, make: Make, attempt: Callable[[Answer], str]) -> None:
    path = f"/v1/webhooks/{(webhook_id := make()['id'])}"
    client.post(f"{path}/test")
    attempt(REFUSED)
    (delivery,) = log_of(client, webhook_id)
    assert delivery["error"] == {"code": "unsuccessful", "detail": "The receiver answered 503."}
    (said,) = delivery["attempts"]
    assert datetime.fromisoformat(said.pop("at")) == NOW
    told = {"status": 503, "error": "unsuccessful", "detail": REFUSED.detail, "response": REFUSED.response}
    assert said == {"number": 1, "duration_ms": 41, **told}
    assert delivery["next_attempt_at"] > delivery["created_at"]
    assert client.get(path).json()["failing_since"] is not None


def test_the_log_comes_in_pages_and_can_be_filtered(
    client: httpx.Client, make: Make, submit: Submit, hand: Hand, attempt: Callable[[Answer], str]
) -> None:
    webhook_id = make()["id"]
    for _ in range(3):
        client.post(f"/v1/webhooks/{webhook_id}/test")
    submit()
    hand.succeed()
    arrived = attempt(Answer(NOW, 5, 200))
    everything = [row["id"] for row in log_of(client, webhook_id)]
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 4
    pages, cursor = [], {}
    while True:
        answer = client.get(f"/v1/webhooks/{webhook_id}/deliveries", params={"limit": 3, **cursor}).json()
        pages.append([row["id"] for row in answer["deliveries"]])
        if answer["next_cursor"] is None:
            break
        cursor = {"cursor": answer["next_cursor"]}
    assert pages == [everything[:3], everything[3:]]
    assert [row["id"] for row in log_of(client, webhook_id, status="succeeded")] == [arrived]
    assert len(log_of(client, webhook_id, type="webhook.test")) == 3
    assert len(log_of(client, webhook_id, type="job.succeeded", status="queued")) == 1
    for bad in ({"status": "rejected"}, {"type": "x"}, {"limit": 0}, {"cursor": "x"}, {"cursor": "a\x00"}):
        answer = client.get(f"/v1/webhooks/{webhook_id}/deliveries", params=bad)
        assert answer.status_code == 422, bad


def test_a_test_event_goes_to_one_webhook_whatever_it_wants(client: httpx.Client, make: Make) -> None:
    tested, other = make(events=["job.failed"])["id"], make()["id"]
    answer = client.post(f"/v1/webhooks/{tested}/test")
    assert answer.status_code == 202
    assert log_of(client, tested) == [answer.json()]
    event = answer.json()["event"]
    assert (event["type"], event["data"], event["test"]) == ("webhook.test", {"webhook": tested}, True)
    assert log_of(client, other) == []


def test_one_is_sent_again_and_a_range_is(
    client: httpx.Client, make: Make, attempt: Callable[[Answer], str], settings: Settings
) -> None:
    path = f"/v1/webhooks/{(webhook_id := make()['id'])}"
    for _ in range(3):
        client.post(f"{path}/test")
    arrived = attempt(Answer(NOW, 5, 200))
    answer = client.post(f"{path}/deliveries/{arrived}/redeliver")
    assert (answer.status_code, answer.json()["status"], answer.json()["id"]) == (202, "queued", arrived)
    assert len(answer.json()["attempts"]) == 1
    for _ in range(3):
        attempt(Answer(NOW, 5, 200))
    since = (NOW - timedelta(hours=1)).isoformat()
    everything = {"since": since, "status": ["succeeded"]}
    assert client.post(f"{path}/redeliver", json={"since": since}).json() == {"queued": 0}
    assert client.post(f"{path}/redeliver", json={**everything, "until": since}).json() == {"queued": 0}
    later = (datetime.now(UTC) + timedelta(hours=1)).replace(tzinfo=None).isoformat()
    assert client.post(f"{path}/redeliver", json={**everything, "since": later}).json() == {"queued": 0}
    assert client.post(f"{path}/redeliver", json=everything).json() == {"queued": 3}
    assert {row["status"] for row in log_of(client, webhook_id)} == {"queued"}
    wrong = ({}, {"since": "yesterday"}, {"since": since, "status": []}, {"since": since, "status": ["queued"]})
    for bad in (*wrong, {"since": "0001-01-01T00:00:00+14:00"}, {"since": since, "until": "9999-12-31T23:59:59-14:00"}):
        assert client.post(f"{path}/redeliver", json=bad).status_code == 422, bad
    for unknown in (f"dlv_{NEVER}", "dlv_1", "x"):
        assert client.post(f"{path}/deliveries/{unknown}/redeliver").status_code == 404


def test_a_delivery_of_another_webhook_is_not_found(client: httpx.Client, make: Make) -> None:
    mine, other = make()["id"], make()["id"]
    delivery_id = client.post(f"/v1/webhooks/{mine}/test").json()["id"]
    assert client.post(f"/v1/webhooks/{other}/deliveries/{delivery_id}/redeliver").status_code == 404


def test_one_that_is_disabled_gets_what_it_missed_when_it_asks(
    client: httpx.Client, make: Make, submit: Submit, hand: Hand
) -> None:
    path = f"/v1/webhooks/{(webhook_id := make(events=['job.succeeded'])['id'])}"
    disabled = client.patch(path, json={"enabled": False}).json()
    assert (disabled["enabled"], disabled["disabled_because"]) == (False, "owner")
    submit()
    hand.succeed()
    (missed,) = log_of(client, webhook_id)
    assert (missed["status"], missed["error"]["code"]) == ("canceled", "webhook_disabled")
    since = {"since": (NOW - timedelta(hours=1)).isoformat()}
    again = f"{path}/deliveries/{missed['id']}/redeliver"
    refused = [client.post(f"{path}/test"), client.post(again), client.post(f"{path}/redeliver", json=since)]
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(409, "webhook_disabled")}
    enabled = client.post(f"{path}/enable").json()
    assert (enabled["enabled"], enabled["disabled_because"]) == (True, None)
    assert log_of(client, webhook_id)[0]["status"] == "canceled"
    assert client.post(f"{path}/redeliver", json=since).json() == {"queued": 1}
    assert log_of(client, webhook_id)[0]["status"] == "queued"


def test_who_did_it_is_in_the_audit_log(client: httpx.Client, make: Make, database: Database) -> None:
    path = f"/v1/webhooks/{(webhook_id := make()['id'])}"
    delivery_id = client.post(f"{path}/test").json()["id"]
    client.patch(path, json={"description": "new"})
    client.post(f"{path}/rotate-secret")
    client.post(f"{path}/deliveries/{delivery_id}/redeliver")
    client.post(f"{path}/redeliver", json={"since": "2026-01-01T00:00:00Z"})
    client.delete(path)
    with reading(database) as session:
        mine = select(Deed).where(Deed.subject == webhook_id).order_by(Deed.id)
        found = list(session.scalars(mine))
    kinds = ["created", "tested", "changed", "secret_rotated", "redelivered", "redelivered", "deleted"]
    assert [deed.action for deed in found] == [f"webhook.{kind}" for kind in kinds]
    assert {deed.actor[:4] for deed in found} == {"key_"}
    assert all(deed.request_id for deed in found)


def test_the_examples_are_true_of_their_schemas() -> None:
    WebhookView.model_validate(webhook_examples.WEBHOOK)
    WebhookWithSecret.model_validate(webhook_examples.WEBHOOK_WITH_SECRET)
    WebhookList.model_validate(webhook_examples.WEBHOOK_LIST)
    DeliveryView.model_validate(webhook_examples.DELIVERY)
    DeliveryPage.model_validate(webhook_examples.DELIVERY_PAGE)
