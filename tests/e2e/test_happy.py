"""A radiograph travels the whole way on real parts: HTTP, Redis, a Celery worker, and either database."""

from __future__ import annotations

import io
from contextlib import ExitStack

import numpy as np
from PIL import Image

from tests import builders, servers
from tests.e2e.conftest import Configure
from tests.servers import Broker

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
