"""The baseline of sse_listeners: a FastAPI application that tells all who listen what it is told, and keeps nothing."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request
from sse_starlette import EventSourceResponse, ServerSentEvent

app = FastAPI()
queues: set[asyncio.Queue[str]] = set()


@app.get("/events")
async def listen() -> EventSourceResponse:
    """A stream of what is said from now on."""
    return EventSourceResponse(_heard(), ping=0, sep="\n")


@app.post("/say")
async def say(request: Request) -> None:
    """Tell all who listen."""
    data = (await request.body()).decode()
    for queue in queues:
        queue.put_nowait(data)


async def _heard() -> AsyncIterator[bytes]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        yield ServerSentEvent(retry=1000, sep="\n").encode()
        while True:
            yield ServerSentEvent(await queue.get(), sep="\n").encode()
    finally:
        queues.discard(queue)


if __name__ == "__main__":
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
