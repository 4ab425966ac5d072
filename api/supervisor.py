"""Processes kept alive: started in a group of their own, restarted when they die, stopped whole, never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from api.console import RED, Console

POLL_S = 0.1
INSTANT_S = 10.0  # a process that lives shorter has not really started
MOST_INSTANT_DEATHS = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
LAST_WORDS_S = 2.0
LINE_BYTES = 2**16
TAIL_LINES = 20
PR_SET_PDEATHSIG = 1

# Looked up before any fork: a child of a process with threads must not import.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """One process to keep alive: how it starts, and how many seconds it may take to stop."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    fds: tuple[int, ...] = ()
    stop_s: float = 10.0


@dataclass
class Child:
    """A program that was started: its process, its last words, and how often in a row it died at once."""

    program: Program
    process: subprocess.Popen[bytes]
    started_at: float
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    reader: threading.Thread | None = None
    instant_deaths: int = 0
    restart_at: float | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None


class GaveUp(Exception):
    """A program died too often right after its start; the message says which, and its last words."""


def start(program: Program, console: Console) -> Child:
    """Start `program`; call it from the main thread, for the child dies with the thread that started it."""
    parent = os.getpid()
    process = subprocess.Popen(
        program.argv,
        env=dict(program.env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=program.fds,
        preexec_fn=(lambda: _die_with(parent)) if _LIBC else None,
    )
    child = Child(program, process, time.monotonic())
    child.reader = threading.Thread(target=_relay, args=(child, process, console), daemon=True)
    child.reader.start()
    return child


def wait_until(
    ready: Callable[[], bool], children: Sequence[Child], stopping: threading.Event, timeout_s: float
) -> bool:
    """Poll until `ready`; False when a child died, the time ran out or we are to stop."""
    deadline = time.monotonic() + timeout_s
    while not stopping.is_set() and time.monotonic() < deadline and all(child.alive for child in children):
        if ready():
            return True
        stopping.wait(POLL_S)
    return False


def tend(children: list[Child], console: Console) -> None:
    """One look at every child: restart, after a pause that grows, what has died. Raises GaveUp."""
    for i, child in enumerate(children):
        if child.alive:
            continue
        if child.restart_at is None:
            _mourn(child, console)
        elif time.monotonic() >= child.restart_at:
            children[i] = start(child.program, console)
            children[i].instant_deaths = child.instant_deaths


def stop(children: Sequence[Child], console: Console, at_once: Callable[[], bool] = lambda: False) -> None:
    """Ask all to stop, kill those that take longer than they may (or when `at_once` says so), and their groups."""
    for child in children:
        _signal_process(child, signal.SIGTERM)
    asked_at = time.monotonic()
    for child in children:
        while child.alive and time.monotonic() < asked_at + child.program.stop_s and not at_once():
            time.sleep(0.02)
        if child.alive:
            console.say(f"{child.program.name} did not stop in time and is killed", RED)
        _bury(child)


def _mourn(child: Child, console: Console) -> None:
    """Say how a child died, clear away what it left running, and decide when it starts again."""
    _bury(child)
    lived_s = time.monotonic() - child.started_at
    child.instant_deaths = child.instant_deaths + 1 if lived_s < INSTANT_S else 1
    name, how = child.program.name, _how(child.process.returncode)
    if child.instant_deaths >= MOST_INSTANT_DEATHS:
        last = "\n".join(f"  {line}" for line in child.tail)
        raise GaveUp(f"{name} {how} {child.instant_deaths} times in a row within seconds of its start.\n{last}")
    pause_s = min(FIRST_PAUSE_S * 2 ** (child.instant_deaths - 1), LONGEST_PAUSE_S)
    child.restart_at = time.monotonic() + pause_s
    console.say(f"{name} {how} after {lived_s:.1f} s; it starts again in {pause_s:g} s", RED)


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _relay(child: Child, process: subprocess.Popen[bytes], console: Console) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        while raw := stream.readline(LINE_BYTES):
            line = raw.decode(errors="replace").rstrip()
            if not line:
                continue
            child.tail.append(line)
            console.relay(child.program.name, line)


def _signal_process(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(number)


def _bury(child: Child) -> None:
    """Kill what the child started and did not end (a session leader's group bears its pid), and hear it out."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(LAST_WORDS_S)
    if child.reader is not None:
        child.reader.join(LAST_WORDS_S)


def _die_with(parent: int) -> None:
    """Runs in the child before it becomes the program: `kill -9` of the supervisor reaches it as a SIGTERM."""
    assert _LIBC is not None
    _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
