"""The supervisor with small programs of a shell: what dies, what will not stop, what leaves children."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import psutil
import pytest

from api import supervisor
from api.console import Console, readable
from api.supervisor import GaveUp, Program
from tests import servers
from tests.operator.conftest import until


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(out: io.StringIO) -> Console:
    return Console(out)


def shell(script: str, **options: float) -> Program:
    return Program("part", ("/bin/sh", "-c", script), dict(os.environ), **options)  # type: ignore[arg-type]


def test_lines_come_out_with_the_name_of_their_program(console: Console, out: io.StringIO) -> None:
    child = supervisor.start(shell("echo one; echo two >&2"), console)
    child.process.wait(5)
    assert until(lambda: out.getvalue().count("\n") == 2)
    assert out.getvalue().splitlines() == ["part    | one", "part    | two"]


def test_what_dies_starts_again_after_a_pause(console: Console, out: io.StringIO) -> None:
    children = [supervisor.start(shell("sleep 60"), console)]
    first = children[0].process
    first.kill()
    first.wait()
    supervisor.tend(children, console)
    assert children[0].process is first
    assert "SIGKILL" in out.getvalue()
    time.sleep(supervisor.FIRST_PAUSE_S)
    supervisor.tend(children, console)
    assert children[0].process is not first
    assert children[0].alive
    supervisor.stop(children, console)


def test_what_never_stays_up_is_given_up_with_its_last_words(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    children = [supervisor.start(shell("echo no weights here; exit 3"), console)]

    def tend() -> bool:
        supervisor.tend(children, console)
        return False

    with pytest.raises(GaveUp, match=r"(?s)part exited with code 3 5 times.*no weights here"):
        until(tend)


def test_what_ignores_sigterm_is_killed_in_time(console: Console, out: io.StringIO) -> None:
    child = supervisor.start(shell("trap '' TERM; echo up; while :; do sleep 1; done", stop_s=0.5), console)
    assert until(lambda: "up" in out.getvalue())
    began = time.monotonic()
    supervisor.stop([child], console)
    assert not child.alive
    assert time.monotonic() - began < 5
    assert "did not stop in time" in out.getvalue()


def test_a_second_signal_waits_for_nobody(console: Console, out: io.StringIO) -> None:
    child = supervisor.start(shell("trap '' TERM; echo up; while :; do sleep 1; done", stop_s=60), console)
    assert until(lambda: "up" in out.getvalue())
    began = time.monotonic()
    supervisor.stop([child], console, at_once=lambda: True)
    assert time.monotonic() - began < 5


def test_grandchildren_go_with_their_parent(console: Console, out: io.StringIO) -> None:
    child = supervisor.start(shell("sleep 61 & echo $!; wait"), console)
    assert until(lambda: "|" in out.getvalue() and out.getvalue().endswith("\n"))
    grandchild = psutil.Process(int(out.getvalue().split("|")[1]))
    child.process.kill()
    child.process.wait()
    supervisor.tend([child], console)
    assert until(lambda: servers.is_gone(grandchild))


def test_waiting_for_readiness_ends_when_the_program_does(console: Console) -> None:
    child = supervisor.start(shell("exit 1"), console)
    began = time.monotonic()
    assert not supervisor.wait_until(lambda: False, [child], threading.Event(), 30)
    assert time.monotonic() - began < 5


def test_a_terminal_shows_log_lines_as_sentences() -> None:
    said = {"event": "request", "level": "warning", "timestamp": "2026-01-05T08:30:00Z", "status": 200}
    line = json.dumps({**said, "exception": "A\nB"})
    assert readable(line) == ["08:30:00 WARNING request status=200", "A", "B"]
    assert readable("{no json") == ["{no json"]


def test_a_reader_that_went_away_stops_nobody() -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    Console(Closed()).say("hello")
