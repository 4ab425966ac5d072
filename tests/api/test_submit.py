"""POST /v1/jobs: durable before it is answered, and answered when it has ended where the client waits."""

from __future__ import annotations

import hashlib
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from shared.db import Database
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, Submit, both, later, serving


@both
def test_an_upload_becomes_a_queued_job(client: httpx.Client, settings: Settings, tenant_id: str) -> None:
    form = {
        "explain": "gradcam",
        "priority": "urgent",
        "external_id": "Fall 7 ä",
        "metadata": '{"a": [1, {"b": null}]}',
    }
    answer = client.post("/v1/jobs", files={"file": ("x.png", FILM, "image/jpeg")}, data=form)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["X-Request-Id"]
    assert (job["status"], job["priority"], job["external_id"]) == ("queued", "urgent", "Fall 7 ä")
    assert job["metadata"] == {"a": [1, {"b": None}]}
    assert job["explanations"]["gradcam"]["status"] == "queued"
    assert job["input"] == {"media_type": "image/png", "bytes": len(FILM), "sha256": hashlib.sha256(FILM).hexdigest()}
    assert (settings.home / "blobs" / tenant_id / job["id"] / "input").read_bytes() == FILM
    assert client.get(answer.headers["Location"]).json() == {**job, "queue_position": 0}


def test_the_same_image_twice_is_two_jobs(submit: Submit) -> None:
    assert submit()["id"] != submit()["id"]


def test_a_job_is_committed_before_it_is_answered(settings: Settings, key: str, database: Database) -> None:
    """A slow commit must delay the answer: what was answered before it could still be lost."""
    delay_s = 0.7
    committed: list[float] = []

    def slow(connection: Any) -> None:
        if connection.get_execution_options().get("hilum_write"):
            time.sleep(delay_s)
            committed.append(time.monotonic())

    with serving(settings) as url:
        event.listen(Engine, "commit", slow)
        try:
            answer = httpx.post(
                f"{url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}, files={"file": FILM}, trust_env=False
            )
            answered = time.monotonic()
        finally:
            event.remove(Engine, "commit", slow)
    assert answer.status_code == 202
    assert committed
    assert committed[-1] < answered
    assert answer.elapsed.total_seconds() > delay_s


def test_what_was_answered_is_readable_to_another_process_at_once(submit: Submit, tmp_path: Path) -> None:
    job = submit()
    connection = sqlite3.connect(tmp_path / "hilum.db")
    assert connection.execute("SELECT status FROM jobs WHERE id = ?", (job["id"],)).fetchall() == [("queued",)]
    connection.close()


def test_waiting_answers_with_the_ended_job(client: httpx.Client, hand: Hand) -> None:
    timer = later(0.5, hand.succeed)
    answer = client.post("/v1/jobs", files={"file": FILM}, headers={"Prefer": "respond-async, wait=15"})
    timer.join()
    assert answer.status_code == 201
    assert answer.json()["status"] == "succeeded"
    assert answer.json()["result"]["top_class"] == "lung_opacity"
    assert answer.headers["Preference-Applied"] == "wait=15"
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"


def test_waiting_in_vain_answers_with_the_job_as_it_stands(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"
    assert 1 <= answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize("prefer", ["wait", "wait=abc", "return=minimal", "nowait=5", ""])
def test_other_preferences_do_not_wait(client: httpx.Client, prefer: str) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"priority": "asap"}, "body.priority"),
        ({"explain": "lime"}, "body.explain.0"),
        ({"explain": "gradcam,magic"}, "body.explain.1"),
        ({"external_id": "x" * 129}, "body.external_id"),
        ({"external_id": "a\x07b"}, "body.external_id"),
        ({"metadata": "{"}, "body.metadata"),
        ({"metadata": "[]"}, "body.metadata"),
        ({"metadata": '{"a": NaN}'}, "body.metadata"),
        ({"metadata": '{"a": "\\u0000"}'}, "body.metadata"),
        ({"metadata": '{"a": ' + "[" * 2000 + "]" * 2000 + "}"}, "body.metadata"),
        ({"colour": "red"}, "body.colour"),
    ],
)
def test_a_wrong_field_is_named(client: httpx.Client, fields: dict[str, str], field: str) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, data=fields)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_request")
    assert [error["field"] for error in problem["errors"]] == [field]


def test_a_field_given_twice_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, data={"priority": ["stat", "routine"]})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_an_empty_list_of_explanations_asks_for_none(submit: Submit) -> None:
    assert submit(explain="")["explanations"] == {}
    assert list(submit(explain=" gradcam ,gradcam,")["explanations"]) == ["gradcam"]


def test_storage_that_cannot_be_written_to_makes_no_job(client: httpx.Client, settings: Settings) -> None:
    (settings.home / "blobs").write_text("a file where the folder should be")
    answer = client.post("/v1/jobs", files={"file": FILM})
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_a_client_that_leaves_in_mid_upload_leaves_nothing(
    url: str, key: str, client: httpx.Client, settings: Settings
) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(FILM) + 500}\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(head.encode() + FILM[: len(FILM) // 2])
        time.sleep(0.2)
    time.sleep(0.3)
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert not (settings.home / "blobs").exists()
