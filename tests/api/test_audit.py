"""The audit log over HTTP: who did what, for an admin of the tenant alone; and purging, which only it remembers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from shared import keys, tenants
from shared.bundles import Bundle
from shared.db import Database, reading, transaction
from shared.errors import Unavailable
from shared.models import ApiKey
from shared.settings import Settings
from shared.storage import LocalStorage
from tests.api.conftest import FILM, Hand, Submit, both, client_of
from tests.servers import metric, until
from tests.values import analysis


def pages(client: httpx.Client, limit: int) -> list[dict[str, Any]]:
    """Every deed, newest first, page by page."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = client.get("/v1/audit", params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["deeds"]) <= limit
        found += page["deeds"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@both
def test_it_says_who_did_what_and_with_which_request(
    client: httpx.Client, database: Database, key: str, tenant_id: str
) -> None:
    with reading(database) as session:
        who = session.scalars(select(ApiKey.id).where(ApiKey.digest == keys.digest(key))).one()
    files = {"file": ("Doe^Jane.png", FILM)}
    fields = {"external_id": "patient-4711", "metadata": '{"name": "Doe"}'}
    made = client.post("/v1/jobs", files=files, data=fields, headers={"X-Request-Id": "first"}).json()["id"]
    client.post(f"/v1/jobs/{made}/cancel", headers={"X-Request-Id": "second"})
    client.delete(f"/v1/jobs/{made}", headers={"X-Request-Id": "third"})
    assert client.get(f"/v1/jobs/{made}").status_code == 404
    *done, key_made, tenant_made = pages(client, 2)
    assert [(d["action"], d["subject"], d["actor"], d["request_id"]) for d in reversed(done)] == [
        ("job.submitted", made, who, "first"),
        ("job.canceled", made, who, "second"),
        ("job.purged", made, who, "third"),
    ]
    assert [d["at"] for d in done] == sorted((d["at"] for d in done), reverse=True)
    assert {d["tenant"] for d in done} == {tenant_id}
    assert (key_made["action"], tenant_made["action"], tenant_made["actor"]) == (
        "key.created",
        "tenant.created",
        "hilum",
    )
    text = client.get("/v1/audit").text
    assert not [word for word in ("Doe", "4711", "name.png") if word in text]


@both
def test_who_asked_for_an_explanation_and_who_canceled_it_is_said(
    client: httpx.Client, submit: Submit, hand: Hand, tiny: Bundle
) -> None:
    first, second = submit(explain="gradcam")["id"], submit(FILM + b"\0")["id"]
    for _ in range(2):
        hand.succeed(said=analysis(bundle=tiny.identity))
    before = len(pages(client, 50))

    def reuse(request_id: str) -> None:
        files, fields = {"file": FILM + b"\0"}, {"reuse": "true", "explain": "gradcam"}
        answer = client.post("/v1/jobs", files=files, data=fields, headers={"X-Request-Id": request_id})
        assert answer.headers["Hilum-Reused"] == "true"

    def ask(job_id: str, request_id: str) -> None:
        body, headers = {"method": "gradcam"}, {"X-Request-Id": request_id}
        assert client.post(f"/v1/jobs/{job_id}/explanations", json=body, headers=headers).status_code == 202

    def cancel(job_id: str, request_id: str) -> int:
        headers = {"X-Request-Id": request_id}
        return client.delete(f"/v1/jobs/{job_id}/explanations/gradcam", headers=headers).status_code

    ask(first, "there-already")
    assert cancel(first, "1") == 200
    ask(first, "2")
    reuse("3"), reuse("there-too")
    assert cancel(second, "4") == 200
    reuse("5")
    hand.explain(first, gradcam_png=b"a picture")
    assert cancel(first, "too-late") == 409
    done = pages(client, 50)[:-before]
    asked, canceled = "explanation.requested", "explanation.canceled"
    assert [(d["action"], d["subject"], d["request_id"]) for d in reversed(done)] == [
        (canceled, first, "1"),
        (asked, first, "2"),
        (asked, second, "3"),
        (canceled, second, "4"),
        (asked, second, "5"),
    ]
    assert [d["detail"] for d in done] == [{"method": "gradcam"}] * 5
    assert {d["actor"] for d in done} == {pages(client, 50)[-3]["actor"]}


def test_only_an_admin_of_the_tenant_reads_it(
    client: httpx.Client, url: str, database: Database, tenant_id: str, submit: Submit
) -> None:
    submit()
    with transaction(database) as session:
        reader = tenants.create_key(session, tenant_id, ["read", "submit"])
        stranger = tenants.create_key(session, tenants.create(session, "stranger").id)
    with client_of(url, reader) as reading_only, client_of(url, stranger) as other:
        assert reading_only.get("/v1/audit").status_code == 403
        assert [deed["action"] for deed in pages(other, 50)] == ["key.created", "tenant.created"]
    assert "job.submitted" in [deed["action"] for deed in pages(client, 50)]
    assert client.get("/v1/audit", params={"cursor": "yesterday"}).json()["code"] == "invalid_cursor"
    assert client.get("/v1/audit", params={"limit": 0}).status_code == 422


# ---------------------------------------------------------------- DELETE /v1/jobs/{job_id}


@both
def test_a_job_that_ended_is_purged_at_once(
    client: httpx.Client, submit: Submit, hand: Hand, settings: Settings, database: Database
) -> None:
    made, kept = submit(explain="gradcam")["id"], submit()["id"]
    assert client.delete(f"/v1/jobs/{made}").json()["code"] == "not_ended"
    assert hand.succeed() == made
    answer = client.delete(f"/v1/jobs/{made}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/explanations/gradcam", "/artifacts/lungs.png"):
        assert client.get(f"/v1/jobs/{made}{path}").json()["code"] == "not_found"
    assert client.delete(f"/v1/jobs/{made}").status_code == 404
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [kept]
    assert not [path for path in settings.home.rglob("*") if made in str(path)]


def test_who_waits_for_a_job_learns_that_it_is_gone(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    made = submit()["id"]
    hand.succeed()
    etag = client.get(f"/v1/jobs/{made}").headers["ETag"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, f"/v1/jobs/{made}", params={"wait": 15}, headers={"If-None-Match": etag})
        until(lambda: metric(client.get("/metrics").text, "hilum_http_waiting") > 0, within_s=10, what="one who waits")
        assert client.delete(f"/v1/jobs/{made}").status_code == 204
        assert waiting.result().status_code == 404


def test_a_store_that_is_away_is_no_lie(
    client: httpx.Client, submit: Submit, hand: Hand, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submit()["id"]
    hand.succeed()

    def away(*_: object) -> None:
        raise Unavailable("The storage does not answer.", code="storage_unavailable")

    monkeypatch.setattr(LocalStorage, "delete", away)
    assert client.delete(f"/v1/jobs/{made}").status_code == 202  # the rows are gone, the files are not
    assert client.get(f"/v1/jobs/{made}").status_code == 404
    assert [path for path in settings.home.rglob("input") if made in str(path)]


def test_the_key_of_a_purged_job_is_free_again(client: httpx.Client, hand: Hand) -> None:
    def post() -> httpx.Response:
        return client.post("/v1/jobs", files={"file": FILM}, headers={"Idempotency-Key": "one"})

    made = post().json()["id"]
    assert post().json()["id"] == made
    hand.succeed()
    assert client.delete(f"/v1/jobs/{made}").status_code == 204
    again = post()
    assert again.status_code == 202
    assert again.json()["id"] != made
