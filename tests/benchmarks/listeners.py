"""The clients of sse_listeners (`python -m tests.benchmarks.listeners`): many raw connections in a process of its own.

It says `ready` when every stream has begun. For each line on its input, which says how many events a stream has had by
then, it waits until all of them have, and says how many bytes each block was and when each arrived, by the machine's
monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from shared.settings import ROOT

AT_ONCE = 50  # connections that are opened at the same time
WAIT_S = 120.0


@dataclass(frozen=True)
class Listeners:
    """`count` streams of one path."""

    port: int
    path: str
    headers: dict[str, str]
    count: int


@dataclass
class Held:
    """Streams that are held open by another process."""

    process: subprocess.Popen[str]

    def arrivals_s(self, events: int) -> list[list[float]]:
        """When each event arrived at each stream, once every stream has had `events` of them."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{events}\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError("the clients have ended")
        return json.loads(said)


@contextmanager
def held(listeners: Listeners) -> Iterator[Held]:
    """The streams, once all of them have begun; they are closed after the block."""
    command = [sys.executable, "-m", "tests.benchmarks.listeners", json.dumps(asdict(listeners))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the streams have not begun")
            yield Held(process)
        finally:
            process.kill()


@dataclass
class _Clients:
    """Every stream, and when its events arrived."""

    asked: Listeners
    arrived_s: list[list[float]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Open the streams, then answer the lines on standard input."""
        gate = asyncio.Semaphore(AT_ONCE)
        begun = [asyncio.get_running_loop().create_future() for _ in range(self.asked.count)]
        tasks = [asyncio.create_task(self._listen(gate, one)) for one in begun]
        await asyncio.wait_for(asyncio.gather(*begun), WAIT_S)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await asyncio.wait_for(self._had(int(line)), WAIT_S)
            print(json.dumps(self.arrived_s), flush=True)
        for task in tasks:
            task.cancel()

    async def _had(self, events: int) -> None:
        while any(len(one) < events for one in self.arrived_s) or len(self.arrived_s) < self.asked.count:
            self.news.clear()
            await self.news.wait()

    async def _listen(self, gate: asyncio.Semaphore, begun: asyncio.Future[None]) -> None:
        arrived: list[float] = []
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.asked.port)
            headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "x", **self.asked.headers}.items())
            writer.write(f"GET {self.asked.path} HTTP/1.1\r\n{headers}\r\n".encode())
            said = b""
            while b"retry:" not in said:
                block = await reader.read(4096)
                if not block:
                    raise RuntimeError(said.decode())
                said += block
        self.arrived_s.append(arrived)
        begun.set_result(None)
        while block := await reader.read(4096):
            now = time.monotonic()
            arrived += [now] * block.count(b"data: ")
            self.news.set()


if __name__ == "__main__":
    asyncio.run(_Clients(Listeners(**json.loads(sys.argv[1]))).run())
