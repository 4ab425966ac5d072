"""A radiograph travels the whole way on real parts: HTTP, Redis, a Celery worker, and either database."""

from __future__ import annotations

import base64
import io
from contextlib import ExitStack

import numpy as np
from PIL import Image

from tests import builders, servers
from tests.e2e.conftest import Configure
from tests.servers import Broker, Service

FILM = builders.chest(5)


def test_an_upload_becomes_a_diagnosis_and_its_picture(
    configure: Configure, broker: Broker, database_kind: dict[str, str], started: ExitStack
) -> None:
    service = started.enter_context(servers.whole_service(configure(**database_kind), broker))
    client = started.enter_context(service.client())
    answer = client.post(
        "/v1/jobs",
        files={"file": ("film.png", builders.png(FILM))},
        data={"explain": "gradcam", "priority": "stat", "external_id": "study-1", "metadata": '{"ward": "3b"}'},
        headers={"Prefer": "wait=30"},
    )
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    assert (job["priority"], job["external_id"], job["metadata"]) == ("stat", "study-1", {"ward": "3b"})
    assert abs(sum(job["result"]["ensemble"].values()) - 1) < 1e-5
    assert set(job["result"]["per_model"]) == set(builders.NETWORKS)

    location, etag = answer.headers["Location"], answer.headers["ETag"]
    while job["explanations"]["gradcam"]["status"] in ("queued", "running"):
        answer = client.get(location, params={"wait": 30}, headers={"If-None-Match": etag})
        assert answer.status_code == 200, answer.text
        job, etag = answer.json(), answer.headers["ETag"]
    assert job["explanations"]["gradcam"]["status"] == "succeeded"
    assert {"input.png", "lungs.png", "gradcam.png", "gradcam.jpg"} <= set(job["artifacts"])

    picture = client.get(job["artifacts"]["gradcam.png"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == FILM.shape[::-1]
    seen = np.asarray(Image.open(io.BytesIO(client.get(job["artifacts"]["input.png"]).content)))
    np.testing.assert_array_equal(seen, FILM)

    assert client.get("/readyz").json()["status"] == "ready"
    assert servers.metric(client.get("/metrics").text, "hilum_workers") == 1
    assert service.ends() == {job["id"]: ["job.succeeded"]}


def test_the_old_route_answers_through_the_same_queue(on_sqlite: Service) -> None:
    with on_sqlite.client() as client:
        answer = client.post("/predict", files={"file": builders.png(FILM)}, data={"gradcam": "true"})
        assert answer.status_code == 200, answer.text
        said = answer.json()
        (job,) = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"]
        blank = client.post("/predict", files={"file": builders.png(np.full((300, 300), 128, np.uint8))})
    picture = Image.open(io.BytesIO(base64.b64decode(said["gradcam_jpg_base64"])))
    assert (picture.format, picture.size) == ("JPEG", FILM.shape[::-1])
    old = {
        "covid19": "COVID-19",
        "lung_opacity": "Opacidad Pulmonar",
        "normal": "Normal",
        "viral_pneumonia": "Neumonía",
    }
    assert said["ensemble"] == {old[code]: p for code, p in job["result"]["ensemble"].items()}
    assert said["top_class"] == old[job["result"]["top_class"]]
    assert max(said["ensemble"], key=said["ensemble"].get) == said["top_class"]
    assert (blank.status_code, blank.json()["code"]) == (422, "low_contrast")
