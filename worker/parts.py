"""What one worker process works with: opened after the fork, loaded when first needed."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from dataclasses import dataclass, field

from shared.bundles import Bundle
from shared.db import Database, open_database
from shared.queue import ringer
from shared.settings import Settings
from shared.storage import Storage, open_storage
from worker.pipeline.predictor import Predictor
from worker.runtimes.choose import open_predictor
from worker.sandbox import Sandbox, open_sandbox


class StopFlag:
    """One bit that a pool's parent and its children share: made before the fork, set once, never cleared."""

    def __init__(self) -> None:
        self._bit = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Ask every process of the pool to take no new row."""
        self._bit[0] = 1

    def is_set(self) -> bool:
        """Whether the worker stops."""
        return self._bit[0] == 1


@dataclass
class Parts:
    """The settings, the connections and the networks of one process; `busy` is held by the thread that works.

    `rung` is set when a delivery may be due, or a slot is free for one; `draining` while it may claim nothing more.
    `held` are the ids of the rows that it works on.
    """

    settings: Settings
    bundle: Bundle
    queues: tuple[str, ...]
    threads: int
    stop: StopFlag
    database: Database
    storage: Storage
    sandbox: Sandbox
    busy: threading.Lock = field(default_factory=threading.Lock)
    rung: threading.Event = field(default_factory=threading.Event)
    draining: threading.Event = field(default_factory=threading.Event)
    held: set[str] = field(default_factory=set)
    _loading: threading.Lock = field(default_factory=threading.Lock)
    _predictor: Predictor | None = None

    @property
    def worker_id(self) -> str:
        """This process among all workers: host and process number."""
        return f"{socket.gethostname()[:64]}:{os.getpid()}"

    @property
    def predictor(self) -> Predictor:
        """The networks, loaded at the first call; BundleError, Misconfigured."""
        with self._loading:
            if self._predictor is None:
                self._predictor = open_predictor(
                    self.bundle,
                    cache=self.settings.cache,
                    runtime=self.settings.runtime,
                    precision=self.settings.precision,
                    device=self.settings.device,
                    threads=self.threads,
                )
            return self._predictor

    @property
    def loaded(self) -> Predictor | None:
        """The networks, if they were loaded already."""
        return self._predictor

    def close(self) -> None:
        """End the helper process and the connections."""
        self.sandbox.close()
        self.database.engine.dispose()


def open_parts(
    settings: Settings, bundle: Bundle, *, queues: tuple[str, ...], threads: int = 0, stop: StopFlag | None = None
) -> Parts:
    """The parts of this process; nothing connects or loads before it is used."""
    return Parts(
        settings=settings,
        bundle=bundle,
        queues=queues,
        threads=threads,
        stop=stop or StopFlag(),
        database=open_database(settings, ring=ringer(settings)),
        storage=open_storage(settings),
        sandbox=open_sandbox(settings),
    )
