"""GET /health and POST /predict: the old answers, through the same queue, each class under the name of its own code."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from shared import tenants
from shared.db import Database, transaction
from shared.schemas import Analysis
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, Submit, client_of, later, serving
from tests.values import analysis

OLD = {
    "covid19": "COVID-19",
    "lung_opacity": "Opacidad Pulmonar",
    "normal": "Normal",
    "viral_pneumonia": "Neumonía",
}
ORDERS = [
    ["covid19", "lung_opacity", "normal", "viral_pneumonia"],
    ["normal", "viral_pneumonia", "covid19", "lung_opacity"],
]


def when_queued(client: httpx.Client, act: Callable[[], object]) -> threading.Thread:
    """Do something as soon as a job is queued."""

    def wait() -> None:
        while not client.get("/v1/jobs", params={"status": "queued"}).json()["jobs"]:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def ordered(classes: list[str]) -> Analysis:
    """The same diagnosis from a bundle whose networks give the classes in another order."""
    said = analysis()
    return said.model_copy(
        update={
            "classes": classes,
            "ensemble": {code: said.ensemble[code] for code in classes},
            "per_model": {name: {code: p[code] for code in classes} for name, p in said.per_model.items()},
        }
    )


def test_health(anonymous: httpx.Client) -> None:
    assert anonymous.get("/health").json() == {"ok": True}


@pytest.mark.parametrize("classes", ORDERS)
def test_each_class_is_named_after_its_code_whatever_the_order(
    client: httpx.Client, hand: Hand, classes: list[str]
) -> None:
    said = ordered(classes)
    thread = when_queued(client, lambda: hand.succeed(said=said))
    answer = client.post("/predict", files={"file": ("film.png", FILM)})
    thread.join(10)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found == {
        "ensemble": {OLD[code]: said.ensemble[code] for code in classes},
        "per_model": {name: {OLD[code]: p[code] for code in classes} for name, p in said.per_model.items()},
        "top_class": "Opacidad Pulmonar",
        "confidence": said.confidence,
        "margin_top2": said.margin_top2,
        "uncertain": said.uncertain,
        "model_disagreement": said.model_disagreement,
        "classes": [OLD[code] for code in classes],
    }
    assert found["ensemble"]["Opacidad Pulmonar"] == 0.71


@pytest.mark.parametrize(
    "how", [{"params": {"gradcam": "true"}}, {"data": {"gradcam": "true"}}, {"data": {"gradcam": "1"}}]
)
def test_the_picture_comes_when_asked_for(client: httpx.Client, hand: Hand, how: dict[str, dict[str, str]]) -> None:
    def work() -> None:
        job_id = hand.succeed()
        later(0.3, lambda: hand.explain(job_id, gradcam_png=b"png", gradcam_jpg=b"the heat"))

    thread = when_queued(client, work)
    answer = client.post("/predict", files={"file": FILM}, **how)  # type: ignore[arg-type]
    thread.join(10)
    assert answer.status_code == 200, answer.text
    assert base64.b64decode(answer.json()["gradcam_jpg_base64"]) == b"the heat"


def test_a_picture_that_could_not_be_drawn_is_null(client: httpx.Client, hand: Hand, database: Database) -> None:
    def work() -> None:
        job_id = hand.succeed()
        client.delete(f"/v1/jobs/{job_id}/explanations/gradcam")

    thread = when_queued(client, work)
    answer = client.post("/predict", files={"file": FILM}, params={"gradcam": "true"})
    thread.join(10)
    assert answer.status_code == 200
    assert answer.json()["gradcam_jpg_base64"] is None
    assert answer.json()["confidence"] == 0.71


def test_a_rejected_image_is_told_with_its_reason(client: httpx.Client, hand: Hand) -> None:
    thread = when_queued(client, hand.reject)
    answer = client.post("/predict", files={"file": FILM})
    thread.join(10)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "too_small")
    assert (problem["value"], problem["threshold"]) == (64.0, 96.0)
    assert answer.headers["Location"] == f"/v1/jobs/{problem['job']}"
    assert client.get(answer.headers["Location"]).json()["status"] == "rejected"


def test_a_canceled_job_is_a_conflict(client: httpx.Client) -> None:
    def cancel() -> None:
        (job,) = client.get("/v1/jobs").json()["jobs"]
        client.post(f"/v1/jobs/{job['id']}/cancel")

    thread = when_queued(client, cancel)
    answer = client.post("/predict", files={"file": FILM})
    thread.join(10)
    assert (answer.status_code, answer.json()["code"]) == (409, "canceled")


def test_an_answer_that_takes_too_long_leaves_the_job_to_be_read(
    settings: Settings, key: str, hand: Hand, submit: Submit
) -> None:
    with serving(settings.model_copy(update={"max_wait_s": 0.5})) as url, client_of(url, key) as client:
        answer = client.post("/predict", files={"file": FILM})
        assert (answer.status_code, answer.json()["code"]) == (503, "wait_expired")
        assert answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        hand.succeed()
        assert client.get(answer.headers["Location"]).json()["status"] == "succeeded"


def test_a_flag_that_is_neither_is_refused(client: httpx.Client) -> None:
    answer = client.post("/predict", files={"file": FILM}, data={"gradcam": "perhaps"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert client.get("/v1/jobs").json()["jobs"] == []


def test_no_key_is_needed_only_where_the_operator_says_so(
    settings: Settings, database: Database, anonymous: httpx.Client
) -> None:
    assert anonymous.post("/predict", files={"file": FILM}).status_code == 401
    with transaction(database) as session:
        key = tenants.ensure_default(session)
    opened = settings.model_copy(update={"legacy_open": True, "max_wait_s": 0.2})
    with serving(opened) as url, client_of(url, None) as stranger, client_of(url, key) as owner:
        assert stranger.post("/predict", files={"file": FILM}).json()["code"] == "wait_expired"
        assert len(owner.get("/v1/jobs").json()["jobs"]) == 1
        wrong = {"Authorization": "Bearer hlm_no"}
        assert stranger.post("/predict", files={"file": FILM}, headers=wrong).status_code == 401
        assert stranger.get("/v1/jobs").status_code == 401
