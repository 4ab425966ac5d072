"""How long a worker that starts into waiting work takes to its first diagnosis."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime

from tests.benchmarks import films, queue
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.stage import Stage, staged
from worker.runtimes import compiled

ROUNDS = 3

ABOUT = About(
    name="cold_start",
    unit="s",
    means="Time from the start of `hilum worker` to the first committed diagnosis of a film of 1024 x 1024 that was "
    "waiting for it; the compiled graphs lie in the cache, as after every start but the first.",
    baseline="the very first start: the same with an empty cache, so that the graphs are compiled on the way",
)


def run() -> Result:
    """Alternate starts with an empty cache and with a filled one; each works on a job of its own."""
    with staged() as stage:
        bundle = films.the_bundle(stage.settings.home / "bundle")
        stage = stage.with_settings(bundle=bundle.root)
        film = films.films(1)

        def first() -> float:
            shutil.rmtree(stage.settings.cache, ignore_errors=True)
            return _first_diagnosis_s(stage, film)

        def later() -> float:
            compiled.ensure(bundle, stage.settings.cache)
            return _first_diagnosis_s(stage, film)

        baseline, ours = alternate(first, later, rounds=ROUNDS, warm_up=0)
    return compared(ABOUT, ours, baseline)


def _first_diagnosis_s(stage: Stage, film: list[bytes]) -> float:
    with queue.opened(stage.settings) as database:
        waiting = queue.fill(database, stage.settings, film)
        began, clock = datetime.now(UTC), time.perf_counter()
        with queue.working(stage, loaded=False):
            done = queue.done(database, waiting)
        seconds = (done.first_end - began).total_seconds()
        assert 0 < seconds < time.perf_counter() - clock, "the clock was set meanwhile"
        return seconds
