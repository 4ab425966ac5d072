"""What is left of the pipeline's speed when a worker runs it for durable jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.benchmarks import films, queue
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.stage import Stage, running, staged
from worker.app import threads_of
from worker.runtimes import compiled

FILMS = 40
ROUNDS = 5

MEANS = (
    "Diagnoses per second of one `hilum worker` with one child over a prefilled queue, from the first claim to the "
    "last end as the rows say: claim, blob, sandboxed decoding, pipeline, three artefacts flushed to the disk, result "
    "committed (SQLite, local storage). Of ten films six are PNG and three JPEG of 1024 x 1024, one is DICOM of 2500 "
    "x 2048. No explanation was asked for."
)
LOOP = (
    "in a loop in one process over the same bytes in memory, with the same bundle, runtime and threads: no database, "
)

ABOUT = About(
    name="pipeline_efficiency",
    unit="jobs/s",
    means=MEANS,
    baseline=f"`analyze` called as the worker calls it, decoding in the sandbox, {LOOP}no storage, no artefacts",
    at_least=0.8,
)
PLAIN = About(
    name="pipeline_efficiency_plain",
    unit="jobs/s",
    means="The same worker in the same run beside a loop without the sandbox: what untrusted files cost as well.",
    baseline=f"`analyze` called with its own decoder in the process itself, {LOOP}no storage, no artefacts, no sandbox",
)
ALSO = (PLAIN,)


def run() -> list[Result]:
    """Alternate passes of the loop, plain and sandboxed, and fillings of the queue; all processes live throughout."""
    with staged() as stage:
        home = stage.settings.home
        bundle = films.the_bundle(home / "bundle")
        stage = stage.with_settings(bundle=bundle.root)
        compiled.ensure(bundle, stage.settings.cache)
        files = films.films(FILMS)
        with _looping(stage, files) as ask, queue.working(stage), queue.opened(stage.settings) as database:
            rejected: set[int] = set()

            def loop(how: str) -> float:
                said = ask(how)
                rejected.add(said["rejected"])
                return FILMS / said["seconds"]

            def worker() -> float:
                done = queue.done(database, queue.fill(database, stage.settings, files))
                rejected.add(done.ends["rejected"])
                return FILMS / done.seconds

            plain, sandboxed, ours = alternate(lambda: loop("plain"), lambda: loop("sandboxed"), worker, rounds=ROUNDS)
    if len(rejected) != 1 or rejected == {FILMS}:
        raise RuntimeError(
            f"of {FILMS} films these numbers were rejected: {rejected}; both must judge, and judge alike"
        )
    print(f"  rejected by the quality gate, alike in all: {rejected.pop()} of {FILMS} films")
    return [compared(ABOUT, ours, sandboxed), compared(PLAIN, ours, plain)]


@contextmanager
def _looping(stage: Stage, files: list[bytes]) -> Iterator[Callable[[str], dict[str, Any]]]:
    """The baseline's process, as a function that asks it for one pass."""
    settings = stage.settings
    folder = settings.home / "films"
    folder.mkdir()
    for number, data in enumerate(files):
        (folder / f"{number:03}").write_bytes(data)
    arguments = [str(settings.bundle), str(settings.cache), str(threads_of(settings, 1)), str(folder)]
    command = [sys.executable, "-m", "tests.benchmarks.loop", *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running(settings.home / "loop.log", command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"

        def ask(how: str) -> dict[str, Any]:
            process.stdin.write(f"{how}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
