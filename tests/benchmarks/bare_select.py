"""The baseline of poll_throughput: a FastAPI application whose only route selects a row by its primary key."""

from __future__ import annotations

import os
import socket
import sys

import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, select

from shared.models import Job

app = FastAPI()
engine = create_engine(os.environ["DATABASE_URL"], pool_size=10, max_overflow=20)


@app.get("/jobs/{job_id}")
def read(job_id: str) -> dict[str, str | int]:
    """The version and the status of one job."""
    with engine.connect() as connection:
        row = connection.execute(select(Job.version, Job.status).where(Job.id == job_id)).one()
    return {"version": row.version, "status": row.status}


if __name__ == "__main__":
    fd = int(sys.argv[sys.argv.index("--fd") + 1])
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
