"""What eight replicas do that one does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import select

from shared import workers
from shared.db import Database, open_database, reading
from shared.models import Event, Job
from shared.queue import ringer
from shared.settings import environment
from tests.benchmarks import fixed, queue
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.server import databases
from tests.benchmarks.stage import Stage, running, staged, wait_until
from tests.builders import chest, png
from tests.tiny import tiny_bundle
from worker.runtimes import compiled

REPLICAS = 8
EACH = 20  # jobs per replica and round
ROUNDS = 3
LOADED_S = 300.0
SIZE = (160, 144)

ABOUT = About(
    name="scale_out",
    unit="jobs/s",
    means=f"Diagnoses per second of {REPLICAS} `hilum worker` replicas on one ledger (PostgreSQL, Redis), from the "
    f"first claim to the last end. Their networks take a fixed time of {fixed.SECONDS:g} s, so that the replicas "
    "compete for the ledger and not for this machine's cores; everything else is the real worker. No row may have "
    "been claimed twice.",
    baseline="one such replica with as many jobs per replica, on a ledger of its own",
    at_least=7.0,
)


@dataclass(frozen=True)
class Crew:
    """Replicas that are loaded and idle, and the database they serve."""

    stage: Stage
    database: Database
    replicas: int
    films: list[bytes]

    def jobs_per_s(self) -> float:
        """Give each replica its share of jobs and wait for the last."""
        made = [job_id for film in self.films for job_id in queue.fill(self.database, self.stage.settings, [film])]
        done = queue.done(self.database, made)
        _check(self.database, made)
        return len(made) / done.seconds


def run() -> Result:
    """Alternate between one replica and eight, both of which stay."""
    with databases("one", "many") as (one_url, many_url), _crew(one_url, 1) as one, _crew(many_url, REPLICAS) as many:
        baseline, ours = alternate(one.jobs_per_s, many.jobs_per_s, rounds=ROUNDS)
    return compared(ABOUT, ours, baseline)


@contextmanager
def _crew(url: str, replicas: int) -> Iterator[Crew]:
    with staged(database_url=url) as stage, ExitStack() as held:
        bundle = tiny_bundle(stage.settings.home / "bundle")
        stage = stage.with_settings(bundle=bundle.root, threads=1)
        compiled.ensure(bundle, stage.settings.cache)
        env = environment(stage.settings) | {"OMP_NUM_THREADS": "1"}
        log = stage.settings.home / "worker.log"
        for _ in range(replicas):
            held.enter_context(running(log, _command(), env=env))
        database = open_database(stage.settings, ring=ringer(stage.settings))
        held.callback(database.engine.dispose)
        wait_until(lambda: _loaded(database) == replicas, f"{replicas} workers have loaded", LOADED_S)
        films = [png(chest(seed, SIZE)) for seed in range(replicas * EACH)]
        yield Crew(stage, database, replicas, films)


def _command() -> list[str]:
    return fixed.command("worker", "--queues", "analyze")


def _loaded(database: Database) -> int:
    with reading(database) as session:
        return sum(worker.runtime is not None for worker in workers.alive(session, LOADED_S))


def _check(database: Database, job_ids: list[str]) -> None:
    """Each row was claimed once and ended once."""
    with reading(database) as session:
        attempts = session.scalars(select(Job.attempt).where(Job.id.in_(job_ids))).all()
        ends = session.scalars(select(Event.job_id).where(Event.job_id.in_(job_ids))).all()
    assert list(attempts) == [1] * len(job_ids), sorted(attempts)[-3:]
    assert sorted(ends) == sorted(job_ids)
