"""A real `hilum up` for a module of tests: tiny bundle, home of its own, a port that is free."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from api import cli
from shared.bundles import Bundle
from shared.settings import Settings, variable
from tests import builders

START_S = 120.0
STOP_S = 40.0


@dataclass
class Up:
    """One `hilum up`: its process, what it printed, and where it serves."""

    process: subprocess.Popen[bytes]
    home: Path
    log: Path

    @property
    def said(self) -> str:
        """Everything it has printed so far."""
        return self.log.read_text("utf-8")

    @property
    def url(self) -> str:
        """Where it serves."""
        return str(json.loads((self.home / "up.json").read_text("utf-8"))["url"])

    def family(self) -> list[psutil.Process]:
        """Every process below it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, *words: str) -> psutil.Process | None:
        """The direct child whose command line holds all `words`, if there is one now."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if set(words) <= set(process.cmdline()):
                    return process
        return None

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


def until(true: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Wait until `true`; False when the time ran out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="session")
def clean_env(tiny: Bundle) -> dict[str, str]:
    """This environment, which the suite has cleared of Hilum's settings, with the tiny bundle."""
    return {**os.environ, "HILUM_BUNDLE": str(tiny.root), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def start_up(
    clean_env: dict[str, str], compiled_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Up]]:
    """Start `hilum up` on a home and wait until it is ready; what still runs at the end is killed."""
    begun: list[Up] = []

    def start(home: Path, *options: str, **variables: str) -> Up:
        if not home.exists():
            home.mkdir(mode=0o700)
            shutil.copytree(compiled_home / "cache", home / "cache")
        log = tmp_path_factory.mktemp("log") / "up.log"
        command = [sys.executable, "-m", "api.cli", "up", "--port", "0", *options]
        with log.open("wb") as out:
            env = {**clean_env, "HILUM_HOME": str(home), **variables}
            process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        up = Up(process, home, log)
        begun.append(up)
        until(lambda: "Ready: " in up.said or process.poll() is not None, START_S)
        assert "Ready: " in up.said, up.said
        return up

    yield start
    for up in begun:
        if up.process.poll() is None:
            up.end()


def submit(url: str, key: str, seed: int = 1) -> dict[str, object]:
    """Submit a drawn radiograph and wait for the end of its job."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=70) as client:
        files = {"file": ("chest.png", builders.png(builders.chest(seed)))}
        answer = client.post("/v1/jobs", files=files, headers={"Prefer": "wait=60"})
        assert answer.status_code in (201, 202), answer.text
        return dict(answer.json())


Typed = Callable[..., str]


@pytest.fixture
def typed(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run a command of `hilum` in this process, on the test's database; what it said, without a terminal's frames."""

    def run(*words: str, code: int = 0) -> str:
        for name in settings.model_fields_set:
            monkeypatch.setenv(variable(name), str(getattr(settings, name)))
        monkeypatch.setattr(sys, "argv", ["hilum", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said
        return re.sub("[│╭╮╰╯─]", "", said.out + said.err)

    return run
