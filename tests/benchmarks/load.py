"""The load of uploads (`python -m tests.benchmarks.load`): a process of threads with raw keep-alive sockets.

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
from pathlib import Path

from shared.settings import ROOT

BOUNDARY = "hilum-benchmark"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Load:
    """`count` uploads of the file `body` (a whole multipart body) to one path, `concurrency` at a time."""

    port: int
    path: str
    key: str
    body: str
    count: int
    concurrency: int


@dataclass(frozen=True)
class Took:
    """Seconds from the first byte sent to the last answer, and those of each upload by itself."""

    seconds: float
    each_s: list[float]


def measured(load: Load) -> Took:
    """Make the uploads from a process of its own; RuntimeError when one of them failed."""
    command = [sys.executable, "-m", "tests.benchmarks.load", json.dumps(asdict(load))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Took(**json.loads(done.stdout))


def multipart(data: bytes) -> bytes:
    """The body of an upload of `data` in the field `file`."""
    head = 'Content-Disposition: form-data; name="file"; filename="film.png"\r\nContent-Type: image/png\r\n\r\n'
    return f"--{BOUNDARY}\r\n{head}".encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def upload(load: Load) -> Took:
    """Make the uploads; any error ends the run."""
    request = _request(load)
    start = threading.Barrier(load.concurrency + 1)
    shares = [len(range(i, load.count, load.concurrency)) for i in range(load.concurrency)]
    with ThreadPoolExecutor(load.concurrency) as pool:
        clients = [pool.submit(_client, load.port, request, share, start) for share in shares]
        start.wait()
        began = time.perf_counter()
        each_s = [seconds for client in clients for seconds in client.result()]
        return Took(time.perf_counter() - began, each_s)


def _request(load: Load) -> bytes:
    body = Path(load.body).read_bytes()
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {load.key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _client(port: int, request: bytes, count: int, start: threading.Barrier) -> list[float]:
    each_s = []
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        start.wait()
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(request)
            _read_answer(connection)
            each_s.append(time.perf_counter() - began)
    return each_s


def _read_answer(connection: socket.socket) -> None:
    """Read one answer to its end; RuntimeError when it is no success."""
    said = b""
    while b"\r\n\r\n" not in said:
        block = connection.recv(65536)
        if not block:
            raise RuntimeError("the server closed the connection")
        said += block
    head, _, body = said.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")):
        raise RuntimeError(f"{head.decode()}\n{body.decode()[:500]}")


if __name__ == "__main__":
    print(json.dumps(asdict(upload(Load(**json.loads(sys.argv[1]))))))
