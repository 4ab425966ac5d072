"""Reading jobs: now, after a wait, unchanged; their artefacts and explanations; and canceling them."""

from __future__ import annotations

import re
import threading
import time
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import event, insert, inspect

from api import forecast
from api.app import create_app
from shared import backlog, workers
from shared.db import Database, transaction
from shared.models import Explanation, Job
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, Submit, both, client_of, later, serving

UNKNOWN = "job_01JDJ5W1M0QZ8N4T7X2B9C3D6F"


def test_a_diagnosis_is_read_as_it_was_written(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    job_id = submit()["id"]
    hand.succeed(input_png=b"pixels", lungs_png=b"mask")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "succeeded"
    assert job["bundle"] == job["result"]["bundle"]
    assert job["result"]["ensemble"]["lung_opacity"] == 0.71
    assert "Not a medical device" in job["disclaimer"]
    assert job["started_at"]
    assert job["finished_at"]
    assert job["artifacts"] == {name: f"/v1/jobs/{job_id}/artifacts/{name}" for name in ("input.png", "lungs.png")}


def test_a_rejection_says_why(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit(explain="gradcam")
    job = client.get(f"/v1/jobs/{hand.reject()}").json()
    assert job["status"] == "rejected"
    assert job["reason"] == {
        "code": "too_small",
        "detail": "too low: the shorter side",
        "value": 64.0,
        "threshold": 96.0,
    }
    assert job["result"] is None
    assert job["explanations"]["gradcam"]["status"] == "canceled"


# ---------------------------------------------------------------- waiting


@both
def test_a_wait_ends_with_the_job(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    job_id = submit()["id"]
    timer = later(0.5, hand.succeed)
    began = time.monotonic()
    answer = client.get(f"/v1/jobs/{job_id}", params={"wait": 15})
    assert time.monotonic() - began < 10
    timer.join()
    assert answer.json()["status"] == "succeeded"


def test_a_wait_in_vain_ends_in_time(client: httpx.Client, submit: Submit) -> None:
    answer = client.get(f"/v1/jobs/{submit()['id']}", params={"wait": 0.5})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert 0.5 <= answer.elapsed.total_seconds() < 5


def test_a_job_that_has_ended_is_not_waited_for(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit()
    answer = client.get(f"/v1/jobs/{hand.succeed()}", params={"wait": 10})
    assert answer.elapsed.total_seconds() < 5


def test_no_wait_is_longer_than_the_operator_allows(client: httpx.Client, submit: Submit) -> None:
    job_id = submit()["id"]
    for wrong in ("-1", "nan", "inf", "soon"):
        answer = client.get(f"/v1/jobs/{job_id}", params={"wait": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "query.wait")


def test_an_entity_tag_says_whether_anything_changed(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    path = f"/v1/jobs/{submit()['id']}"
    tag = client.get(path).headers["ETag"]
    for true in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        unchanged = client.get(path, headers={"If-None-Match": true})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["ETag"]) == (304, b"", tag)
    hand.succeed()
    changed = client.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


@both
def test_an_answer_that_nothing_changed_costs_one_query_of_the_row(settings: Settings, key: str) -> None:
    app, asked = create_app(settings), []
    with serving(settings, app) as url, client_of(url, key) as client:
        path = f"/v1/jobs/{client.post('/v1/jobs', files={'file': FILM}).json()['id']}"
        tag = client.get(path).headers["ETag"]

        @event.listens_for(app.state.parts.database.engine, "before_cursor_execute")
        def heard(_: object, __: object, statement: str, *rest: object) -> None:
            asked.extend([statement] if statement != "BEGIN" else [])

        assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
        (statement,) = asked
    columns, _, rest = statement.partition("FROM")
    assert set(re.findall(r"jobs\.(\w+)", columns)) == {"version", "status"}
    assert set(re.findall(r"jobs\.(\w+)", rest)) == {"id", "tenant_id"}


def test_a_wait_with_a_tag_ends_at_any_change(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    path = f"/v1/jobs/{submit()['id']}"
    claim = hand.claim()
    tag = client.get(path).headers["ETag"]
    timer = later(0.4, lambda: hand.stage(claim, "lungs"))
    answer = client.get(path, params={"wait": 15}, headers={"If-None-Match": tag})
    timer.join()
    assert (answer.status_code, answer.json()["stage"]) == (200, "lungs")
    still = client.get(path, params={"wait": 0.4}, headers={"If-None-Match": answer.headers["ETag"]})
    assert still.status_code == 304


def test_one_end_wakes_everyone_who_waits(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    path, seen = f"/v1/jobs/{submit()['id']}", []
    threads = [
        threading.Thread(target=lambda: seen.append(client.get(path, params={"wait": 15}).json()["status"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    hand.succeed()
    for thread in threads:
        thread.join(10)
    assert seen == ["succeeded"] * 8


# ---------------------------------------------------------------- the queue


@both
def test_a_queued_job_says_how_many_are_served_before_it(
    client: httpx.Client, submit: Submit, hand: Hand, database: Database
) -> None:
    def positions(*job_ids: str) -> list[object]:
        return [client.get(f"/v1/jobs/{job_id}").json()["queue_position"] for job_id in job_ids]

    first, second = submit()["id"], submit()["id"]
    urgent = submit(priority="stat")["id"]
    assert positions(urgent, first, second) == [0, 1, 2]
    assert hand.claim().id == urgent
    tag = client.get(f"/v1/jobs/{second}").headers["ETag"]
    assert positions(urgent, first, second) == [None, 0, 1]
    client.post(f"/v1/jobs/{first}/cancel")
    assert positions(second) == [0]
    assert client.get(f"/v1/jobs/{second}").headers["ETag"] == tag
    with transaction(database) as session:
        job = session.get_one(Job, second)
        row = {column.key: getattr(job, column.key) for column in inspect(Job).column_attrs}
        row["due_at"] -= timedelta(hours=1)
        session.execute(insert(Job), [{**row, "id": f"job_{place:026d}"} for place in range(backlog.AHEAD)])
    assert positions(second) == [backlog.AHEAD]
    submit(priority="urgent")
    assert positions(second) == ["1000+"]


@both
def test_the_expected_end_is_known_once_workers_have_ended_jobs(
    client: httpx.Client, submit: Submit, hand: Hand, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "PACE_KEPT_S", 0.0)
    submit()
    waiting = f"/v1/jobs/{submit()['id']}"
    assert client.get(waiting).json()["eta_s"] is None
    ended = hand.succeed()
    with transaction(database) as session:
        job = session.get_one(Job, ended)
        job.started_at = job.finished_at - timedelta(seconds=4)
        workers.beat(session, "host:1", queues=["analyze"])
        workers.beat(session, "host:2", queues=["explain"])
    assert client.get(waiting).json()["eta_s"] == 4.0
    submit()
    behind = f"/v1/jobs/{submit()['id']}"
    assert client.get(behind).json()["eta_s"] == 12.0
    with transaction(database) as session:
        workers.beat(session, "host:3", queues=["analyze"])
    assert client.get(behind).json()["eta_s"] == 8.0
    hand.succeed()
    assert client.get(waiting).json()["eta_s"] is None


# ---------------------------------------------------------------- cancel


@both
def test_what_is_queued_is_canceled_at_once(client: httpx.Client, submit: Submit) -> None:
    job_id = submit(explain="gradcam")["id"]
    for _ in range(2):  # once more changes nothing
        job = client.post(f"/v1/jobs/{job_id}/cancel").json()
        assert (job["status"], job["explanations"]["gradcam"]["status"]) == ("canceled", "canceled")


def test_what_runs_is_asked_to_stop(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    job_id = submit()["id"]
    hand.claim()
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "running")


def test_what_has_ended_cannot_be_canceled(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit()
    answer = client.post(f"/v1/jobs/{hand.succeed()}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "already_ended")


# ---------------------------------------------------------------- artefacts


def test_an_artefact_is_its_bytes_under_its_own_type(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit()
    job_id = hand.succeed(lungs_png=b"a mask", cams_npz=b"maps")
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/lungs.png")
    assert (answer.content, answer.headers["Content-Type"]) == (b"a mask", "image/png")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert client.get(f"/v1/jobs/{job_id}/artifacts/cams.npz").headers["Content-Type"] == "application/zip"


@pytest.mark.parametrize(
    "name",
    [
        "nothing.png",
        "input",
        "../input",
        "..%2Finput",
        "%2e%2e%2f%2e%2e%2fhilum.db",
        "..%5C..%5Chilum.db",
        "%2Fetc%2Fpasswd",
        "lungs.png%00",
        "lungs.png/",
        ".hidden",
        "a" * 65,
        "l%C3%BCngs.png",
        "lungs.png%0A",
    ],
)
def test_no_name_leads_out_of_the_job(client: httpx.Client, submit: Submit, hand: Hand, name: str) -> None:
    submit()
    job_id = hand.succeed()
    # httpx would tidy the path up before it is sent.
    request = client.build_request("GET", client.base_url)
    request.url = request.url.copy_with(raw_path=f"/v1/jobs/{job_id}/artifacts/{name}".encode())
    answer = client.send(request)
    assert answer.status_code == 404, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_an_artefact_whose_file_is_gone_is_not_found(
    client: httpx.Client, submit: Submit, hand: Hand, settings: Settings
) -> None:
    submit()
    job_id = hand.succeed()
    next((settings.home / "blobs").rglob("lungs.png")).unlink()
    answer = client.get(f"/v1/jobs/{job_id}/artifacts/lungs.png")
    assert (answer.status_code, answer.json()["code"]) == (404, "blob_not_found")


# ---------------------------------------------------------------- explanations


@both
def test_an_explanation_is_asked_for_read_and_drawn(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    path = f"/v1/jobs/{submit()['id']}/explanations"
    assert client.get(f"{path}/gradcam").status_code == 404
    asked = client.post(path, json={"method": "gradcam"})
    assert (asked.status_code, asked.json()["status"]) == (202, "queued")
    assert asked.headers["Location"] == f"{path}/gradcam"
    job_id = hand.succeed()
    before = client.get(f"/v1/jobs/{job_id}")
    hand.explain(job_id, gradcam_png=b"heat", gradcam_jpg=b"heat too")
    found = client.get(f"{path}/gradcam").json()
    assert (found["status"], found["artifacts"]) == ("succeeded", ["gradcam.png", "gradcam.jpg"])
    after = client.get(f"/v1/jobs/{job_id}")
    assert after.json()["result"] == before.json()["result"]
    assert after.headers["ETag"] != before.headers["ETag"]
    assert client.get(after.json()["artifacts"]["gradcam.png"]).content == b"heat"
    again = client.post(path, json={"method": "gradcam"})
    assert (again.status_code, again.json()["status"]) == (202, "succeeded")


def test_an_explanation_is_canceled(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit(explain="gradcam")
    path = f"/v1/jobs/{hand.succeed()}/explanations"
    assert client.delete(f"{path}/gradcam").json()["status"] == "canceled"
    assert client.post(path, json={"method": "gradcam"}).json()["status"] == "queued"
    hand.claim(Explanation)
    assert client.delete(f"{path}/gradcam").json()["status"] == "running"


def test_there_is_nothing_to_explain_without_a_diagnosis(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit()
    answer = client.post(f"/v1/jobs/{hand.reject()}/explanations", json={"method": "gradcam"})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_diagnosis")


@pytest.mark.parametrize("body", [{"method": "lime"}, {}, {"method": "gradcam", "x": 1}, [], None])
def test_a_wrong_wish_for_an_explanation_is_refused(client: httpx.Client, submit: Submit, body: object) -> None:
    answer = client.post(f"/v1/jobs/{submit()['id']}/explanations", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_only_known_methods_have_an_address(client: httpx.Client, submit: Submit) -> None:
    assert client.get(f"/v1/jobs/{submit()['id']}/explanations/lime").status_code == 422


@pytest.mark.parametrize("job_id", [UNKNOWN, "job_x", "1", "job_01jdj5w1m0qz8n4t7x2b9c3d6f", "%00"])
def test_an_unknown_id_is_not_found(client: httpx.Client, job_id: str) -> None:
    answer = client.get(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
