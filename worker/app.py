"""The Celery worker: a pool whose parent holds no network and no connection, and whose children load their own."""

from __future__ import annotations

import os
import signal
import warnings
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning

from shared import bundles, logs
from shared.bundles import Bundle
from shared.errors import Misconfigured
from shared.queue import ANALYZE, DELIVER, EXPLAIN, QUEUES, celery
from shared.settings import Settings
from worker import tasks
from worker.deliver import Dispatcher
from worker.loop import Pulse
from worker.parts import Parts, StopFlag, open_parts
from worker.runtimes import choose, compiled

log = logs.get("worker.app")


class Process:
    """The parts of the process that asks for them: made anew after a fork, for connections must not be shared."""

    def __init__(self, settings: Settings, bundle: Bundle, queues: tuple[str, ...], threads: int) -> None:
        self.stop = StopFlag()
        self._plan = (settings, bundle, queues, threads)
        self._opened: tuple[int, Parts, list[Dispatcher | Pulse]] | None = None

    def parts(self) -> Parts:
        """The parts of this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            settings, bundle, queues, threads = self._plan
            parts = open_parts(settings, bundle, queues=queues, threads=threads, stop=self.stop)
            dispatcher = [Dispatcher(parts)] if DELIVER in queues else []
            self._opened = (os.getpid(), parts, [*dispatcher, Pulse(parts)])
        return self._opened[1]

    def begin(self, **_: Any) -> None:
        """A child was forked (or the solo pool starts): its heart beats, its networks load, its deliveries are sent."""
        logs.configure(self._plan[0], "worker")
        self.parts()
        assert self._opened
        for part in self._opened[2]:
            part.start()

    def end(self, **_: Any) -> None:
        """A child ends in good order."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self.stop.set()
            for part in self._opened[2]:
                part.stop()
            self._opened[1].close()


def _asked_to_stop(number: int, _: Any) -> None:
    """Leave a first SIGTERM to the parent, which tells its children to hand back; let a second one end this child.

    Some platforms send it to every process of a worker. A child that died of it would lose the row in its hands.
    """
    signal.signal(number, signal.SIG_DFL)


def run(settings: Settings, queues: tuple[str, ...], concurrency: int) -> int:
    """Work until SIGTERM or SIGINT and return the exit code; BundleError, Misconfigured before anything starts."""
    _check(settings, queues)
    works = {ANALYZE, EXPLAIN} & set(queues)
    bundle = bundles.read(settings.bundle) if works else bundles.read_manifest(settings.bundle)
    solo = settings.device == "cuda"  # CUDA does not survive a fork
    if ANALYZE in queues:
        choose.prepare(bundle, cache=settings.cache, runtime=settings.runtime, device=settings.device)
    process = Process(settings, bundle, queues, threads_of(settings, concurrency))
    app = create(settings, process)
    _connect(settings, process, solo=solo)
    log.info("starts", queues=list(queues), concurrency=concurrency, bundle=bundle.identity)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # about pickles as root; only JSON is accepted here
    worker = app.Worker(
        pool_cls="solo" if solo else "prefork",
        concurrency=1 if solo else concurrency,
        queues=list(queues),
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return worker.exitcode or 0


def create(settings: Settings, process: Process) -> Celery:
    """The application of the workers, with its tasks."""
    app = celery(settings)
    app.conf.update(
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        broker_connection_max_retries=None,  # until the broker is back, workers look into the database themselves
    )
    tasks.register(app, process.parts)
    return app


def threads_of(settings: Settings, concurrency: int) -> int:
    """Threads of each of `concurrency` children: together they never want more cores than there are."""
    return settings.threads or max(1, compiled.cores() // concurrency)


def _check(settings: Settings, queues: tuple[str, ...]) -> None:
    if not settings.broker_url:
        raise Misconfigured("REDIS_URL names no broker; `hilum up` brings one of its own")
    if unknown := set(queues) - set(QUEUES) or (not queues and {""}):
        raise Misconfigured(f"no queue is called {', '.join(sorted(unknown))}; there are {', '.join(QUEUES)}")


def _connect(settings: Settings, process: Process, *, solo: bool) -> None:
    """Hang our own beginnings and ends on Celery's signals; they live as long as this process."""
    signals.setup_logging.connect(lambda **_: logs.configure(settings, "worker"), weak=False)
    signals.worker_shutting_down.connect(lambda **_: process.stop.set(), weak=False)
    signals.worker_process_init.connect(process.begin, weak=False)
    signals.worker_process_shutdown.connect(process.end, weak=False)
    if solo:  # the solo pool announces its beginning, but not its end
        signals.worker_shutdown.connect(process.end, weak=False)
    else:  # not earlier: the pool sets the handlers of a child after it has announced its beginning
        signals.task_prerun.connect(lambda **_: signal.signal(signal.SIGTERM, _asked_to_stop), weak=False)
