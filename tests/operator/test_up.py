"""`hilum up` as an operator meets it: real processes, real sockets, a real Redis."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests import servers
from tests.conftest import postgres_database
from tests.operator.conftest import Up, submit, until

KEY = re.compile(r"hlm_[\w-]{20,}")

Start = Callable[..., Up]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "home"


@pytest.fixture(scope="module")
def up(start_up: Start, home: Path) -> Up:
    """The first start on this home."""
    return start_up(home)


@pytest.fixture(scope="module")
def key(up: Up) -> str:
    """The key that the first start showed, exactly once."""
    shown = KEY.findall(up.said)
    assert len(shown) == 1
    return shown[0]


def refused(env: dict[str, str], home: Path, *options: str) -> str:
    """What a `hilum up` says that must not start."""
    command = [sys.executable, "-m", "api.cli", "up", *options]
    done = subprocess.run(command, env={**env, "HILUM_HOME": str(home)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_it_serves_a_job_and_says_where(up: Up, key: str) -> None:
    assert submit(up.url, key)["status"] == "succeeded"
    assert httpx.get(f"{up.url}/readyz").json()["parts"] == dict.fromkeys(
        ("database", "broker", "storage", "workers"), "ok"
    )
    assert httpx.get(f"{up.url}/v1/jobs").status_code == 401


def test_each_line_of_a_child_bears_its_name(up: Up) -> None:
    names = {line.split("|")[0].strip() for line in up.said.splitlines() if re.match(r"\w+ +\|", line)}
    assert {"broker", "api", "worker", "explain", "deliver"} <= names


def test_the_home_is_for_its_owner_alone(up: Up) -> None:
    assert up.home.stat().st_mode & 0o077 == 0
    assert (up.home / "redis" / "redis.conf").stat().st_mode & 0o077 == 0


def test_without_a_key_only_the_legacy_routes_answer(up: Up) -> None:
    assert httpx.post(f"{up.url}/predict", files={"file": ("x.txt", b"no image")}).status_code == 415


def test_a_second_one_on_the_same_home_is_refused(up: Up, clean_env: dict[str, str]) -> None:
    said = refused(clean_env, up.home, "--port", "0")
    assert str(up.process.pid) in said
    assert up.url in said
    assert up.process.poll() is None


def test_a_port_that_is_taken_is_named_and_another_offered(up: Up, clean_env: dict[str, str], tmp_path: Path) -> None:
    port = int(up.url.rpartition(":")[2])
    said = refused(clean_env, tmp_path / "other", "--port", str(port))
    assert f"port {port}" in said.lower()
    offered = re.search(r"--port (\d+)", said)
    assert offered
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(offered[1])))
    assert refused({**clean_env, "PORT": str(port)}, tmp_path / "third") == said


@pytest.mark.parametrize("words", [("worker", "analyze"), ("sweep",), ("api",)])
def test_a_child_that_is_killed_starts_again(up: Up, key: str, words: tuple[str, ...]) -> None:
    victim = up.child(*words)
    assert victim
    below = victim.children(recursive=True)
    victim.kill()
    # The supervisor holds the socket: a request that comes while the API is away waits for it.
    assert submit(up.url, key, seed=2)["status"] == "succeeded"
    assert until(lambda: up.child(*words) not in (None, victim))
    assert until(lambda: all(map(servers.is_gone, below)))


def test_the_broker_starts_again_where_the_others_look_for_it(up: Up, key: str) -> None:
    victim = next(p for p in psutil.Process(up.process.pid).children() if "redis" in p.name() or "valkey" in p.name())
    victim.kill()
    assert submit(up.url, key, seed=3)["status"] == "succeeded"
    assert until(lambda: httpx.get(f"{up.url}/readyz").status_code == 200)


def test_sigterm_leaves_no_process_behind_even_with_a_request_that_waits(up: Up, key: str) -> None:
    family = up.family()
    assert len(family) >= 6
    with httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {key}"}, timeout=90) as client:
        newest = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]["id"]
        held = threading.Thread(target=_hold, args=(client, newest), daemon=True)
        held.start()
        held.join(0.5)
        assert held.is_alive()
        assert up.end() == 0
    assert not [process for process in family if not servers.is_gone(process)]
    assert not (up.home / "up.json").exists()


def test_the_next_start_needs_no_key_and_survives_no_kill(up: Up, key: str, start_up: Start, home: Path) -> None:
    assert up.process.poll() is not None
    key_file = home.parent / "key"
    again = start_up(home, "--key-file", str(key_file))
    assert not KEY.findall(again.said)
    assert key_file.stat().st_mode & 0o077 == 0
    for one in (key, key_file.read_text("utf-8").strip()):
        assert submit(again.url, one, seed=4)["status"] == "succeeded"
    family = again.family()
    again.end(signal.SIGKILL)
    assert until(lambda: all(map(servers.is_gone, family))), family


@pytest.mark.postgres
def test_the_same_code_on_postgresql_and_a_redis_of_somebody_else(
    start_up: Start, postgres_url: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with postgres_database(postgres_url) as database_url, servers.broker(tmp_path) as redis:
        up = start_up(home, DATABASE_URL=database_url, REDIS_URL=redis.url)
        assert submit(up.url, KEY.findall(up.said)[0])["status"] == "succeeded"
        assert not (home / "hilum.db").exists()
        assert not (home / "redis").exists()
        assert up.end() == 0


def test_an_address_or_a_bundle_that_is_none_is_said_before_anything_starts(
    clean_env: dict[str, str], tmp_path: Path
) -> None:
    assert "no bundle" in refused({**clean_env, "HILUM_BUNDLE": str(tmp_path)}, tmp_path / "home")
    assert "PORT" in refused({**clean_env, "PORT": "a"}, tmp_path / "home")
    assert "cannot be bound" in refused({**clean_env, "HILUM_HOST": "203.0.113.1"}, tmp_path / "home")
    assert not (tmp_path / "home" / "hilum.db").exists()


def _hold(client: httpx.Client, job_id: str) -> None:
    """Wait for news of a job of which there will be none."""
    with contextlib.suppress(httpx.HTTPError):
        etag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
        client.get(f"/v1/jobs/{job_id}", params={"wait": 60}, headers={"If-None-Match": etag})
