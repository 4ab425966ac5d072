"""Untrusted bytes are decoded apart: one process per file, with limits, whose death is an answer and not an accident.

A helper process imports the decoders once and forks for each file. The fork is limited in time, memory and files, knows
no secret of the worker (neither its environment nor its sockets), leaves the pixels in shared memory, and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import Unavailable, Unreadable
from worker.pipeline.decode import MAX_PIXELS, Radiograph

if TYPE_CHECKING:  # the helper has no use for settings
    from shared.settings import Settings

SIZE = struct.Struct("<Q")  # bytes of the file that follows
STATUS = struct.Struct("<i")  # how a fork ended, as waitpid reports it
PIPE_BYTES = 2**20
KEPT_BYTES = 64 * 2**20  # shared memory beyond this is given back after each image
START_S = 60.0
GRACE_S = 2.0  # what the helper may take beyond the fork's own limit
ROOT = Path(__file__).resolve().parents[1]


class Sandbox:
    """A decoder in other processes; call `decode` from one thread at a time, `close` at the end."""

    def __init__(self, *, max_pixels: int = MAX_PIXELS, memory_bytes: int = 3 * 2**30, timeout_s: float = 20.0) -> None:
        self._limits = (max_pixels, memory_bytes, timeout_s)
        self._helper: _Helper | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin to start the helper without waiting for it; `decode` does so too. Any thread may call this."""
        with self._starting:
            if self._helper is None or not self._helper.usable:
                self.close()
                self._helper = _Helper(*self._limits)

    def decode(self, data: bytes) -> Radiograph:
        """What `decode.decode` says, from another process; its end is an Unreadable as well.

        Codes of its own are decoder_timeout, decoder_memory and decoder_crashed. Unavailable when no helper starts.
        """
        for _ in range(2):
            self.start()
            assert self._helper is not None
            try:
                self._helper.wait_ready()
            except OSError as error:
                self.close()
                raise Unavailable("The decoder does not start.", code="decoder_unavailable") from error
            try:
                return self._helper.ask(data)
            except OSError:
                self.close()  # the helper itself died, perhaps of something else: the file gets one more
        raise _crashed("its helper died with it, twice")

    def close(self) -> None:
        """End the helper and whatever it still decodes."""
        if self._helper is not None:
            self._helper.end()
            self._helper = None


def open_sandbox(settings: Settings) -> Sandbox:
    """The decoder with the limits of the settings; it starts when first used."""
    return Sandbox(
        max_pixels=settings.max_pixels,
        memory_bytes=settings.decode_memory_bytes,
        timeout_s=settings.decode_timeout_s,
    )


class _Helper:
    """One helper process, seen from the worker. A fork waits in it for the next file, and is replaced when it ends."""

    def __init__(self, max_pixels: int, memory_bytes: int, timeout_s: float) -> None:
        self._owner = os.getpid()
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        status, their_status = os.pipe()
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115, it is closed in `end`
        memory = _shared_memory(max_pixels * 4)
        self._memory = mmap.mmap(memory, max_pixels * 4)
        limits = [str(max_pixels), str(memory_bytes), str(timeout_s)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.sandboxed", str(their_status), str(memory), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(their_status, memory),
            start_new_session=True,  # Ctrl-C in a terminal is for the worker, which ends its helper in order
            cwd=ROOT,
            env=_bare_environment(),
        )
        os.close(their_status)
        os.close(memory)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._data, self._answer = self._process.stdin.fileno(), self._process.stdout.fileno()
        with contextlib.suppress(AttributeError, OSError):  # only Linux has it, and it only saves time
            fcntl.fcntl(self._data, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._idle = False

    @property
    def usable(self) -> bool:
        """Whether it lives and is this process's own; a fork of the worker needs another."""
        return self._owner == os.getpid() and self._process.poll() is None

    def wait_ready(self) -> None:
        """Return once a fork waits for the next file and the one before has ended. OSError when that fails."""
        if not self._idle:
            self._ended(time.monotonic() + START_S)

    def ask(self, data: bytes) -> Radiograph:
        """Decode one file. OSError when the helper is gone."""
        deadline = time.monotonic() + self._timeout_s + GRACE_S
        self._idle = False
        write_all(self._data, SIZE.pack(len(data)))
        write_all(self._data, data)
        said = self._said(deadline)
        if said is None:
            raise _of_status(self._ended(deadline), self._timeout_s)
        try:
            return self._radiograph(said)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _crashed("its answer makes no sense") from error

    def end(self) -> None:
        """Kill the helper with its fork, unless another process owns it."""
        if self._owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._status):
            if pipe is not None:
                pipe.close()
        self._memory.close()

    def _said(self, deadline: float) -> dict[str, Any] | None:
        """The line of JSON that the fork answers; None when it ends without one."""
        line = b""
        while not line.endswith(b"\n"):
            ready = self._ready([self._answer, self._status.fileno()], deadline)
            if self._answer not in ready:
                return None
            block = os.read(self._answer, PIPE_BYTES)
            if not block:
                raise ConnectionResetError("the helper is gone")
            line += block
            if len(line) > PIPE_BYTES:
                self.end()
                raise _crashed("its answer has no end")
        return json.loads(line)

    def _ended(self, deadline: float) -> int:
        """How the last fork ended."""
        self._ready([self._status.fileno()], deadline)
        status = STATUS.unpack(read_exactly(self._status.fileno(), STATUS.size))[0]
        self._idle = True
        return status

    def _ready(self, pipes: list[int], deadline: float) -> list[int]:
        ready = select.select(pipes, [], [], max(deadline - time.monotonic(), 0))[0]
        if not ready:
            self.end()
            raise _late(self._timeout_s)
        return ready

    def _radiograph(self, said: dict[str, Any]) -> Radiograph:
        """The image, of which nothing is trusted, or the Unreadable that the fork reported."""
        if "code" in said:
            raise Unreadable(**said)
        height, width = said.pop("shape")
        if not 0 < height * width <= self._max_pixels:
            raise _crashed("it announces more pixels than it may, or none")
        pixels = np.frombuffer(self._memory, dtype=np.float32, count=height * width).reshape(height, width).copy()
        if pixels.nbytes > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE)
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise _crashed("its pixels leave 0..1")
        spacing = said.pop("spacing_mm")
        return Radiograph(pixels=pixels, spacing_mm=tuple(spacing) if spacing else None, **said)


def write_all(pipe: int, data: bytes) -> None:
    """Write every byte; OSError when the other side is gone."""
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


def read_exactly(pipe: int, count: int) -> bytes:
    """Read `count` bytes; ConnectionResetError, an OSError, when the other side is gone."""
    blocks = []
    while count:
        block = os.read(pipe, min(count, PIPE_BYTES))
        if not block:
            raise ConnectionResetError("the other side is gone")
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def _of_status(status: int, timeout_s: float) -> Unreadable:
    """What it means for the file that its fork ended without an answer."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGALRM, signal.SIGXCPU):
        return _late(timeout_s)
    if number == signal.SIGKILL:  # nobody here sends it: the kernel does when the machine's memory runs out
        return Unreadable("decoder_memory", "decoding took more memory than this machine has")
    return _crashed(f"signal {number}" if number else f"exit status {os.waitstatus_to_exitcode(status)}")


def _crashed(how: str) -> Unreadable:
    return Unreadable("decoder_crashed", f"the decoder broke on this file: {how}")


def _late(timeout_s: float) -> Unreadable:
    return Unreadable("decoder_timeout", f"decoding took more than {timeout_s:g} s", threshold=timeout_s)


def _shared_memory(size: int) -> int:
    """A file of `size` bytes that has no name; where the system can, one that nobody shrinks under its reader."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            return os.dup(file.fileno())
    memory = os.memfd_create("hilum-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory


def _bare_environment() -> dict[str, str]:
    """Enough to run Python, and no secret.

    The linear algebra's threads would not survive a fork; large pages spare a fork ten thousand page faults an image.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    tuned = {"OPENBLAS_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    return {**kept, **tuned, "PYTHONPATH": os.pathsep.join(sys.path)}
