"""Where the API listens: the socket, what to do when it cannot be had, and how a browser reaches it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterator

from shared.errors import Misconfigured
from shared.settings import Settings

BACKLOG = 2048


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket of the API, held here: while the API restarts, clients wait in it instead of being refused."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise Misconfigured(f"HILUM_HOST={settings.host} is no address of this machine: {error.strerror}") from error
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise Misconfigured(_cannot_bind(settings, error)) from error
        yield listener


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, which is a numeric address."""
    return ipaddress.ip_address(host).is_loopback


def url_of(host: str, port: int) -> str:
    """How a browser on this machine reaches the address."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _cannot_bind(settings: Settings, error: OSError) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        why = f"{where} is taken by another program"
    elif error.errno == errno.EACCES:
        why = f"{where} is for the administrator only"
    else:
        why = f"{where} cannot be bound: {error.strerror}"
    return (
        f"{why[0].upper()}{why[1:]}. Choose another: `hilum up --port {_another(settings)}` or "
        f"`PORT={_another(settings)} make up`; port 0 takes any that is free."
    )


def _another(settings: Settings) -> int:
    """A port near the wanted one that is free now."""
    for port in range(max(settings.port, 1024) + 1, min(settings.port + 100, 65535)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    return 0
