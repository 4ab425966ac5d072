"""How much memory a worker holds after it has worked for a while."""

from __future__ import annotations

import contextlib
import time

import psutil

from tests.benchmarks import films, queue
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.stage import Stage, staged
from worker.runtimes import compiled

JOBS = 50
ROUNDS = 3
SETTLE_S = 2.0

ABOUT = About(
    name="worker_rss",
    unit="MB",
    means="Memory of the whole process tree of one `hilum worker` with one child (pool parent, child, sandbox) after "
    "50 jobs, pages that processes share counted once (PSS), so that the figure is what the machine lacks. One film "
    "in ten has 2500 x 2048 pixels.",
    baseline="the same worker after the same jobs on the torch runtime in float32 (HILUM_RUNTIME=torch)",
)


def run() -> Result:
    """Alternate workers on torch and on what `auto` chooses, each started anew."""
    with staged() as stage:
        bundle = films.the_bundle(stage.settings.home / "bundle")
        stage = stage.with_settings(bundle=bundle.root)
        compiled.ensure(bundle, stage.settings.cache)
        files = films.films(JOBS)
        torch = stage.with_settings(runtime="torch")
        baseline, ours = alternate(
            lambda: _memory_mb(torch, files), lambda: _memory_mb(stage, files), rounds=ROUNDS, warm_up=0
        )
    return compared(ABOUT, ours, baseline)


def _memory_mb(stage: Stage, files: list[bytes]) -> float:
    with queue.working(stage) as worker, queue.opened(stage.settings) as database:
        queue.done(database, queue.fill(database, stage.settings, files))
        time.sleep(SETTLE_S)
        return sum(_pss(process) for process in (worker, *worker.children(recursive=True))) / 1e6


def _pss(process: psutil.Process) -> int:
    """Bytes of one process, of a page that n processes hold an n-th; resident bytes where the system counts no such."""
    with contextlib.suppress(psutil.NoSuchProcess):
        info = process.memory_full_info()
        return getattr(info, "pss", info.rss)
    return 0
