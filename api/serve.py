"""One API process: uvicorn, on a port of its own or on a socket that its supervisor holds."""

from __future__ import annotations

import socket

import uvicorn

from api.app import create_app
from shared import logs
from shared.settings import Settings

GRACE_S = 5  # requests that wait are cut off after this; their jobs go on
KEEP_ALIVE_S = 75  # longer than the idle time of common proxies, which must be the first to close


def serve(settings: Settings, fd: int | None = None) -> None:
    """Serve until a signal; `fd` is a listening socket that was inherited."""
    logs.configure(settings, "api")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    uvicorn.Server(config).run(sockets=sockets)
