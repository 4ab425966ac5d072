"""What orchestrators ask: alive, ready, and how much waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from shared import jobs, workers
from shared.db import Database, transaction
from shared.settings import Settings
from tests import servers

Client = Callable[..., TestClient]


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """An API process whose settings differ from the test's own as the arguments say."""
    opened: list[TestClient] = []

    def start(**changed: object) -> TestClient:
        opened.append(TestClient(create_app(settings.model_copy(update=changed))).__enter__())
        return opened[-1]

    yield start
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real Redis of the test's own."""
    with servers.broker(tmp_path) as redis:
        yield redis.url


def test_alive_needs_nobody(client: Client) -> None:
    away = {"database_url": "postgresql://hilum@127.0.0.1:1/none", "broker_url": "redis://127.0.0.1:1/0"}
    assert client(**away).get("/healthz").json() == {"status": "ok"}


def test_ready_when_all_parts_are_there(client: Client, database: Database, redis_url: str) -> None:
    with transaction(database) as session:
        workers.beat(session, "a", queues=["analyze"])
    answer = client(broker_url=redis_url).get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "parts": {"database": "ok", "broker": "ok", "storage": "ok", "workers": "ok"},
    }


def test_a_worker_that_only_explains_does_not_make_it_ready(client: Client, database: Database, redis_url: str) -> None:
    with transaction(database) as session:
        workers.beat(session, "a", queues=["explain"])
    answer = client(broker_url=redis_url).get("/readyz")
    assert answer.status_code == 503
    assert [name for name, said in answer.json()["parts"].items() if said != "ok"] == ["workers"]


def test_each_part_that_fails_is_named(client: Client, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    away = {
        "database_url": "postgresql://hilum@127.0.0.1:1/none",
        "broker_url": "redis://127.0.0.1:1/0",
        "storage_url": (blocked / "blobs").as_uri(),
    }
    answer = client(**away).get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"]
    problem = answer.json()
    assert problem["code"] == "not_ready"
    assert set(problem["parts"]) == {"database", "broker", "storage", "workers"}
    assert "ok" not in problem["parts"].values()


def test_a_database_without_tables_is_not_ready(client: Client, tmp_path: Path) -> None:
    parts = client(database_url=f"sqlite:///{tmp_path / 'empty.db'}").get("/readyz").json()["parts"]
    assert "hilum migrate" in parts["database"]


def test_a_broker_that_swallows_packets_costs_no_more_than_its_time_limit(client: Client) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()  # connections are taken by the kernel, and nobody ever answers
        api = client(broker_url=f"redis://127.0.0.1:{hole.getsockname()[1]}/0", broker_timeout_s=0.5)
        began = time.monotonic()
        parts = api.get("/readyz").json()["parts"]
        assert time.monotonic() - began < 2
    assert parts["broker"] != "ok"
    assert parts["storage"] == "ok"


def test_metrics_count_what_waits_and_what_was_answered(
    client: Client, database: Database, settings: Settings, tenant_id: str
) -> None:
    with transaction(database) as session:
        workers.beat(session, "a", queues=["analyze"])
        for priority in ("stat", "routine", "routine"):
            job_id = jobs.new_id()
            details = {
                "blob_key": f"{tenant_id}/{job_id}/input",
                "media_type": "image/png",
                "size": 1,
                "sha256": "0" * 64,
            }
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, priority=priority, **details)
    api = client()
    api.get("/v1/jobs/job_01JDJ5W1M0QZ8N4T7X2B9C3D6F")
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'hilum_jobs_unfinished{priority="routine",status="queued"} 2.0' in lines
    assert 'hilum_jobs_unfinished{priority="stat",status="queued"} 1.0' in lines
    assert "hilum_workers 1.0" in lines
    assert any(line.startswith('hilum_oldest_queued_seconds{priority="stat"}') for line in lines)
    counted = 'hilum_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="401"}'
    assert any(line.startswith(counted) for line in lines)
    assert not any("job_01JDJ5" in line for line in lines)


def test_metrics_of_the_process_outlive_the_database(client: Client) -> None:
    answer = client(database_url="postgresql://hilum@127.0.0.1:1/none").get("/metrics")
    assert answer.status_code == 200
    assert "hilum_jobs_unfinished" not in answer.text
