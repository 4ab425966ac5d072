"""One API process: uvicorn, on a port of its own or on a socket that its supervisor holds."""

from __future__ import annotations

import contextlib
import resource
import socket

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from shared import logs
from shared.settings import Settings

GRACE_S = 5  # requests that are not answered by then are cut off; their jobs go on
FILES = 65_536
KEEP_ALIVE_S = 75  # longer than the idle time of common proxies, which must be the first to close


def serve(settings: Settings, fd: int | None = None) -> None:
    """Serve until a signal; `fd` is a listening socket that was inherited."""
    logs.configure(settings, "api")
    _open_many()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    Server(config, app).run(sockets=sockets)


def _open_many() -> None:
    """Let this process open as many files as the system grants: every listener is one, and a shell may allow 1,024."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(most, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class Server(uvicorn.Server):
    """Uvicorn, which at its end first answers the requests that wait, so that each client learns the id of its job."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wake who waits and end the streams, then end as ever."""
        await self._app.state.parts.notifier.close()
        await self._app.state.parts.broadcast.close()
        await super().shutdown(sockets)
