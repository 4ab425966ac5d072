"""The baseline of accept_cost: a FastAPI application whose only route reads an upload, served as Hilum is."""

from __future__ import annotations

import socket
import sys

import uvicorn
from fastapi import FastAPI, UploadFile

CHUNK_BYTES = 2**20

app = FastAPI()


@app.post("/upload")
async def upload(file: UploadFile) -> dict[str, int]:
    """Read the upload to its end and say how long it was."""
    size = 0
    while chunk := await file.read(CHUNK_BYTES):
        size += len(chunk)
    return {"size": size}


if __name__ == "__main__":
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
