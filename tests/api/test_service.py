"""Alive, ready, counted, discovered; and the bundle that answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from api.migrate import migrate
from shared import workers
from shared.bundles import Bundle
from shared.db import Database, transaction
from shared.settings import Settings
from tests import servers
from tests.api.conftest import Hand, Submit, client_of, serving
from tests.servers import metric


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> object:
    with servers.broker(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def ready_settings(settings: Settings, database: Database, redis: servers.Broker) -> Settings:
    """Settings with a broker that answers, beside a worker that was just seen."""
    with transaction(database) as session:
        workers.beat(session, "host:1", queues=["analyze", "explain"])
    return settings.model_copy(update={"broker_url": redis.url, "broker_timeout_s": 0.5})


def readiness(settings: Settings) -> tuple[int, dict[str, str]]:
    with serving(settings) as url, client_of(url, None) as client:
        answer = client.get("/readyz")
        if answer.status_code == 503:
            assert answer.json()["code"] == "not_ready"
            assert answer.headers["Retry-After"]
        assert client.get("/healthz").json() == {"status": "ok"}  # it lives, whatever is missing
        return answer.status_code, answer.json()["parts"]


def test_it_is_ready_when_every_part_answers(ready_settings: Settings) -> None:
    assert readiness(ready_settings) == (200, dict.fromkeys(("database", "broker", "storage", "workers"), "ok"))


def failing(parts: dict[str, str]) -> set[str]:
    return {name for name, answer in parts.items() if answer != "ok"}


def test_a_broker_that_is_down_is_named(ready_settings: Settings) -> None:
    down = ready_settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{servers.free_port()}/0"})
    status, parts = readiness(down)
    assert (status, failing(parts)) == (503, {"broker"})


def test_a_broker_that_swallows_everything_is_named_in_time(ready_settings: Settings, redis: servers.Broker) -> None:
    redis.freeze()
    try:
        with serving(ready_settings) as url:
            answer = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
    finally:
        redis.thaw()
    assert failing(answer.json()["parts"]) == {"broker"}
    assert answer.elapsed.total_seconds() < 4


def test_a_broker_that_nobody_set_is_named(ready_settings: Settings) -> None:
    status, parts = readiness(ready_settings.model_copy(update={"broker_url": ""}))
    assert (status, failing(parts)) == (503, {"broker"})
    assert "REDIS_URL" in parts["broker"]


def test_storage_that_cannot_be_written_to_is_named(ready_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, parts = readiness(ready_settings.model_copy(update={"storage_url": (tmp_path / "file/x").as_uri()}))
    assert (status, failing(parts)) == (503, {"storage"})


def test_a_database_without_tables_is_named(ready_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    status, parts = readiness(ready_settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/other/x.db"}))
    assert (status, failing(parts)) == (503, {"database", "workers"})
    assert "migrate" in parts["database"]


def test_the_absence_of_workers_is_named(ready_settings: Settings, database: Database) -> None:
    with transaction(database) as session:
        workers.leave(session, "host:1")
        workers.beat(session, "host:2", queues=["explain"])
    status, parts = readiness(ready_settings)
    assert (status, failing(parts)) == (503, {"workers"})


# ---------------------------------------------------------------- metrics


def test_metrics_tell_the_queue_and_the_requests(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    def counted(route: str, status: str, method: str = "GET") -> float:
        text = client.get("/metrics").text
        return metric(text, "hilum_http_requests_total", method=method, route=route, status=status)

    before = counted("/v1/jobs/{job_id}", "200"), counted("unmatched", "404"), counted("unmatched", "404", "other")
    submit(priority="stat", explain="gradcam")
    job_id = submit()["id"]
    hand.claim()
    client.get(f"/v1/jobs/{job_id}")
    client.get("/v1/jobs/x/y/z")
    client.request("BREW", "/coffee")
    text = client.get("/metrics").text
    assert counted("/v1/jobs/{job_id}", "200") == before[0] + 1
    assert counted("unmatched", "404") == before[1] + 1
    assert counted("unmatched", "404", "other") == before[2] + 1
    assert metric(text, "hilum_http_request_seconds_count", method="POST", route="/v1/jobs") >= 2
    assert metric(text, "hilum_jobs_unfinished", status="running", priority="stat") == 1
    assert metric(text, "hilum_jobs_unfinished", status="queued", priority="routine") == 1
    assert metric(text, "hilum_explanations_unfinished", status="queued") == 1
    assert job_id not in text


def test_metrics_are_still_worth_a_scrape_without_the_database(settings: Settings, tmp_path: Path) -> None:
    with serving(settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/none/x.db"})) as url:
        answer = httpx.get(f"{url}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert "hilum_http_request_seconds" in answer.text
    assert "hilum_jobs_unfinished" not in answer.text


# ---------------------------------------------------------------- models and discovery


def test_the_bundle_is_described(client: httpx.Client, tiny: Bundle) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["identity"] == tiny.identity
    assert model["classes"] == tiny.manifest.classes
    assert [network["sha256"] for network in model["networks"]] == [n.sha256 for n in tiny.manifest.networks]
    assert model["intended_use"] == "tests"
    assert "Not a medical device" in model["disclaimer"]


def test_a_bundle_that_is_not_there_is_our_fault(settings: Settings, key: str, tmp_path: Path) -> None:
    with serving(settings.model_copy(update={"bundle": tmp_path / "none"})) as url, client_of(url, key) as client:
        answer = client.get("/v1/models")
    assert (answer.status_code, answer.json()["code"]) == (500, "bundle_error")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("", "application/json"),
        ("application/json", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json, text/html;q=0.5", "application/json"),
        ("text/html;q=x", "application/json"),
    ],
)
def test_the_root_says_where_everything_is(anonymous: httpx.Client, accept: str, media_type: str) -> None:
    answer = anonymous.get("/", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(media_type)
    assert answer.headers["Vary"] == "Accept"
    head = anonymous.head("/", headers={"Accept": accept})
    assert (head.status_code, head.content, head.headers["Content-Type"]) == (200, b"", answer.headers["Content-Type"])
    if media_type == "application/json":
        for path in answer.json()["links"].values():
            assert anonymous.get(path).status_code in (200, 401, 503), path


def test_an_api_starts_before_its_database_and_serves_when_that_is_there(settings: Settings, tmp_path: Path) -> None:
    home = tmp_path / "late"
    home.mkdir()
    late = settings.model_copy(update={"database_url": f"sqlite:///{home}/hilum.db"})
    with serving(late) as url, client_of(url, "hlm_x") as client:
        assert client.get("/v1/jobs").json()["code"] == "database_unavailable"
        migrate(late)
        assert client.get("/v1/jobs").json()["code"] == "unauthenticated"
