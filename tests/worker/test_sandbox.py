"""Whatever a file does to its decoder, the next file decodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from shared.errors import Unreadable
from tests import builders
from worker.pipeline import decode
from worker.sandbox import Sandbox

FILM = builders.chest(1)
LARGE = builders.png(builders.chest(2, (4200, 4000)))  # takes a while to decode


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox()
    yield opened
    opened.close()


def helper_of(sandbox: Sandbox) -> psutil.Process:
    """The helper process; it exists once the sandbox was started."""
    sandbox.start()
    assert sandbox._helper
    return psutil.Process(sandbox._helper._process.pid)


def busy_fork_of(helper: psutil.Process) -> psutil.Process:
    """The fork that decodes right now."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess, IndexError):
            child = helper.children()[0]
            if child.cpu_times().user > 0.03:
                return child
        time.sleep(0.002)
    raise AssertionError("no fork was seen")


def idle_fork_of(sandbox: Sandbox) -> psutil.Process:
    """The fork that waits for the next file, its limits set."""
    sandbox.decode(builders.png(FILM))
    assert sandbox._helper
    sandbox._helper.wait_ready()
    (fork,) = helper_of(sandbox).children()
    while fork.rlimit(psutil.RLIMIT_NOFILE)[0] > 16:
        time.sleep(0.01)
    return fork


def during_decoding(sandbox: Sandbox, data: bytes, act: Callable[[psutil.Process], None]) -> None:
    """Decode `data` while `act` is called with the fork that decodes it."""
    helper = helper_of(sandbox)
    thread = threading.Thread(target=lambda: act(busy_fork_of(helper)))
    thread.start()
    try:
        sandbox.decode(data)
    finally:
        thread.join()


@pytest.mark.parametrize(
    "data",
    [
        builders.png(FILM),
        builders.jpeg(FILM),
        builders.tiff(FILM),
        builders.bmp(FILM),
        builders.png(FILM.astype(np.uint16) * 256),
        *(builders.dicom(FILM, syntax=syntax) for syntax in builders.SYNTAXES),
    ],
)
def test_the_answer_is_that_of_the_decoder(sandbox: Sandbox, data: bytes) -> None:
    here, there = decode.decode(data), sandbox.decode(data)
    np.testing.assert_array_equal(here.pixels, there.pixels)
    assert there.pixels.dtype == np.float32
    assert (here.chroma, here.bits, here.format, here.spacing_mm, here.view) == (
        there.chroma,
        there.bits,
        there.format,
        there.spacing_mm,
        there.view,
    )


def test_refusals_pass_through(sandbox: Sandbox) -> None:
    truncated = builders.png(FILM)[:2000]
    cases = {
        "truncated": truncated,
        "undecodable": b"%PDF-1.7 this is no image" * 20,
        "too_many_pixels": builders.blank_png(12_000, 9_000),
        "no_pixels": builders.dicom_without_pixels(),
        "multi_frame": builders.tiff(FILM, FILM),
    }
    for code, data in cases.items():
        with pytest.raises(Unreadable) as caught:
            sandbox.decode(data)
        with pytest.raises(Unreadable) as direct:
            decode.decode(data)
        assert (caught.value.code, direct.value.code) == (code, code) or code == "undecodable"
        assert caught.value.code == direct.value.code
        assert caught.value.value == direct.value.value
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape


def test_a_memory_bomb_is_an_answer() -> None:
    sandbox = Sandbox(memory_bytes=500 * 2**20)
    bomb = builders.blank_png(9_900, 5_000)  # 50 KB that want 200 MB of float32 and more
    with pytest.raises(Unreadable) as caught:
        sandbox.decode(bomb)
    assert caught.value.code == "decoder_memory"
    assert caught.value.threshold == 500 * 2**20
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape
    sandbox.close()


def test_an_endless_decoder_is_an_answer() -> None:
    sandbox = Sandbox(timeout_s=0.05)
    sandbox.start()
    began = time.monotonic()
    with pytest.raises(Unreadable) as caught:
        sandbox.decode(LARGE)
    assert caught.value.code == "decoder_timeout"
    assert caught.value.threshold == 0.05
    assert time.monotonic() - began < 10
    sandbox.close()


def test_a_stopped_decoder_is_an_answer() -> None:
    """A frozen fork cannot run its own alarm: the worker's deadline ends it."""
    sandbox = Sandbox(timeout_s=1.0)
    with pytest.raises(Unreadable) as caught:
        during_decoding(sandbox, LARGE, lambda fork: fork.send_signal(signal.SIGSTOP))
    assert caught.value.code == "decoder_timeout"
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape
    sandbox.close()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGSEGV, "decoder_crashed"), (signal.SIGABRT, "decoder_crashed"), (signal.SIGKILL, "decoder_memory")],
)
def test_a_crash_is_an_answer(sandbox: Sandbox, number: int, code: str) -> None:
    with pytest.raises(Unreadable) as caught:
        during_decoding(sandbox, LARGE, lambda fork: fork.send_signal(number))
    assert caught.value.code == code
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape


def test_a_dead_helper_is_replaced(sandbox: Sandbox) -> None:
    sandbox.decode(builders.png(FILM))
    first = helper_of(sandbox)
    first.kill()
    first.wait(5)
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape
    assert helper_of(sandbox).pid != first.pid


def test_a_file_that_kills_the_helper_twice_is_an_answer(sandbox: Sandbox) -> None:
    def kill_both() -> None:
        for _ in range(2):
            helper = helper_of(sandbox)
            busy_fork_of(helper)
            helper.kill()
            helper.wait(5)
            deadline = time.monotonic() + 5
            while (not sandbox._helper or sandbox._helper._process.pid == helper.pid) and time.monotonic() < deadline:
                time.sleep(0.005)

    sandbox.start()
    thread = threading.Thread(target=kill_both)
    thread.start()
    with pytest.raises(Unreadable) as caught:
        sandbox.decode(LARGE)
    sandbox.start()
    thread.join()
    assert caught.value.code == "decoder_crashed"


def test_no_secret_and_no_socket_is_inherited(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("DATABASE_URL", "postgresql://user:password@host/db")
    with socket.socket() as listener:
        listener.set_inheritable(True)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        fork = idle_fork_of(sandbox)
        for process in (helper_of(sandbox), fork):
            assert "DATABASE_URL" not in process.environ()
            targets = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
            assert not [target for target in targets if target.startswith("socket:")]


def test_a_fork_cannot_write_files_or_grow(sandbox: Sandbox) -> None:
    fork = idle_fork_of(sandbox)
    assert fork.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert fork.rlimit(psutil.RLIMIT_AS) == (3 * 2**30, 3 * 2**30)
    assert fork.rlimit(psutil.RLIMIT_NOFILE)[0] <= 16


def test_the_helper_dies_with_its_worker() -> None:
    code = """
import sys, time
from worker.sandbox import Sandbox
sandbox = Sandbox()
sandbox.start()
sandbox._helper.wait_ready()
print(sandbox._helper._process.pid, flush=True)
time.sleep(60)
"""
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert worker.stdout is not None
    helper = psutil.Process(int(worker.stdout.readline()))
    forks = helper.children()
    worker.kill()
    worker.wait()
    gone, alive = psutil.wait_procs([helper, *forks], timeout=10)
    assert not alive, gone


def test_a_fork_of_the_worker_starts_a_helper_of_its_own(sandbox: Sandbox) -> None:
    sandbox.decode(builders.png(FILM))
    mine = helper_of(sandbox).pid
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            sandbox.decode(builders.png(FILM))
            code = 0 if sandbox._helper and sandbox._helper._process.pid != mine else 2
            sandbox.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert helper_of(sandbox).pid == mine
    assert sandbox.decode(builders.png(FILM)).pixels.shape == FILM.shape
