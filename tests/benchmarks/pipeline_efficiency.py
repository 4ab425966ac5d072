"""What is left of the pipeline's speed when a worker runs it for durable jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.benchmarks import films, queue
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.stage import running, staged
from worker.app import threads_of
from worker.runtimes import compiled

FILMS = 40
ROUNDS = 5

ABOUT = About(
    name="pipeline_efficiency",
    unit="jobs/s",
    means="Diagnoses per second of one `hilum worker` with one child over a prefilled queue, from the first claim to "
    "the last end as the rows say: claim, blob, sandboxed decoding, pipeline, three artefacts flushed to the disk, "
    "result committed (SQLite, local storage). Of ten films six are PNG and three JPEG of 1024 x 1024, one is DICOM "
    "of 2500 x 2048. No explanation was asked for.",
    baseline="`analyze` called in a loop in one process over the same bytes in memory, with the same bundle, runtime "
    "and threads, decoding in the process itself: no sandbox, no database, no storage, no artefacts",
    at_least=0.8,
)


def run() -> Result:
    """Alternate passes of the loop and fillings of the queue; both processes live through all rounds, idle in turn."""
    with staged() as stage:
        home = stage.settings.home
        bundle = films.the_bundle(home / "bundle")
        stage = stage.with_settings(bundle=bundle.root)
        compiled.ensure(bundle, stage.settings.cache)
        files = films.films(FILMS)
        folder = home / "films"
        folder.mkdir()
        for number, data in enumerate(files):
            (folder / f"{number:03}").write_bytes(data)
        arguments = [str(bundle.root), str(stage.settings.cache), str(threads_of(stage.settings, 1)), str(folder)]
        loop = [sys.executable, "-m", "tests.benchmarks.loop", *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (
            running(home / "loop.log", loop, **pipes) as process,
            queue.working(stage),
            queue.opened(stage.settings) as database,
        ):
            assert process.stdout.readline() == "ready\n"
            rejected: set[int] = set()

            def plain() -> float:
                said = _asked(process)
                rejected.add(said["rejected"])
                return FILMS / said["seconds"]

            def worker() -> float:
                done = queue.done(database, queue.fill(database, stage.settings, files))
                rejected.add(done.ends["rejected"])
                return FILMS / done.seconds

            ours, baseline = alternate(plain, worker, rounds=ROUNDS)
    if len(rejected) != 1 or rejected == {FILMS}:
        raise RuntimeError(
            f"of {FILMS} films these numbers were rejected: {rejected}; both must judge, and judge alike"
        )
    print(f"  rejected by the quality gate, alike in both: {rejected.pop()} of {FILMS} films")
    return compared(ABOUT, ours, baseline)


def _asked(process: Any) -> dict[str, Any]:
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())
