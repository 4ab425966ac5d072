"""The load of poll_throughput (`python -m tests.benchmarks.polls`): threads with raw keep-alive sockets that ask again.

An HTTP client library would cost as much of the two cores as the server that is measured.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from shared.settings import ROOT

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Polls:
    """`count` requests in turn for `paths`, `concurrency` at a time, with `headers`; `status` is the right answer."""

    port: int
    paths: list[str]
    headers: dict[str, str]
    status: int
    count: int
    concurrency: int


def seconds(polls: Polls) -> float:
    """How long they took together, from a process of its own; RuntimeError when one was answered otherwise."""
    command = [sys.executable, "-m", "tests.benchmarks.polls", json.dumps(asdict(polls))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def ask(polls: Polls) -> float:
    """Make the requests; any error ends the run."""
    start = threading.Barrier(polls.concurrency + 1)
    with ThreadPoolExecutor(polls.concurrency) as pool:
        clients = [pool.submit(_client, polls, first, start) for first in range(polls.concurrency)]
        start.wait()
        began = time.perf_counter()
        for client in clients:
            client.result()
        return time.perf_counter() - began


def _client(polls: Polls, first: int, start: threading.Barrier) -> None:
    headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "benchmark", **polls.headers}.items())
    requests = [f"GET {path} HTTP/1.1\r\n{headers}\r\n".encode() for path in polls.paths]
    with socket.create_connection(("127.0.0.1", polls.port), timeout=TIMEOUT_S) as connection:
        start.wait()
        for number in range(first, polls.count, polls.concurrency):
            connection.sendall(requests[number % len(requests)])
            _read_answer(connection, polls.status)


def _read_answer(connection: socket.socket, status: int) -> None:
    said = b""
    while b"\r\n\r\n" not in said:
        block = connection.recv(65536)
        if not block:
            raise RuntimeError("the server closed the connection")
        said += block
    head, _, body = said.partition(b"\r\n\r\n")
    if not head.startswith(f"HTTP/1.1 {status} ".encode()):
        raise RuntimeError(said.decode())
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < lengths[0]:
        body += connection.recv(65536)


if __name__ == "__main__":
    print(ask(Polls(**json.loads(sys.argv[1]))))
