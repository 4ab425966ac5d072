"""A worker that dies or freezes in the middle of a job: every job still ends, and ends once."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import ExitStack

import numpy as np
from sqlalchemy import select

from shared.db import reading
from shared.models import Explanation, Job
from shared.schemas import Status
from tests import builders, servers
from tests.e2e.conftest import Configure
from tests.servers import Broker, Running, Service

# The death of a worker shows after seconds instead of half a minute.
IMPATIENT = {"lease_s": 2.0, "renew_s": 0.5, "pulse_s": 1.0, "sweep_every_s": 0.3}
JOBS = 8
# Large enough that a job spends most of its time outside the database, where a signal shall meet it.
FILM = builders.png(np.kron(builders.chest(3), np.ones((8, 8), np.uint8)))


def submit_all(service: Service) -> list[str]:
    return [service.submit(FILM, explain="gradcam") for _ in range(JOBS)]


def freeze_in_mid_job(service: Service, worker: Running) -> str:
    """Stop every process of the worker while a job of it is running, and say which job that is."""

    def frozen() -> str | None:
        if not running(service):
            return None
        worker.send(signal.SIGSTOP)
        # Only what is running while nobody moves is in the middle: it may have ended just before the signal. And a
        # process that froze with SQLite's write lock in its hand would stop the whole service, not only itself.
        found = running(service) if writable(service) else None
        if not found:
            worker.send(signal.SIGCONT)
        return found

    found = servers.until(frozen, what="a job in the middle")
    assert found
    return found


def running(service: Service) -> str | None:
    return next((job.id for job in service.jobs() if job.status == Status.RUNNING), None)


def writable(service: Service) -> bool:
    """Whether nobody holds the write lock of the database."""
    if service.database.engine.dialect.name != "sqlite":
        return True
    connection = sqlite3.connect(service.settings.home / "hilum.db", timeout=0.2, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        return True
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


def all_ended(service: Service) -> bool:
    with reading(service.database) as session:
        drawing = select(Explanation.id).where(Explanation.status.in_([Status.QUEUED, Status.RUNNING]))
        return service.unfinished() == 0 and session.scalars(drawing).first() is None


def assert_each_ended_once(service: Service, job_ids: list[str]) -> None:
    assert service.ends() == {job_id: ["job.succeeded"] for job_id in job_ids}
    with reading(service.database) as session:
        drawn = list(session.scalars(select(Explanation)))
    assert [row.status for row in drawn] == [Status.SUCCEEDED] * len(job_ids)


def of(service: Service, job_id: str) -> Job:
    return next(job for job in service.jobs() if job.id == job_id)


def test_a_killed_worker_costs_no_job(
    configure: Configure, own_broker: Broker, database_kind: dict[str, str], started: ExitStack
) -> None:
    service = started.enter_context(servers.service(configure(**IMPATIENT, **database_kind), own_broker))
    started.enter_context(servers.hilum(service.settings, "sweep"))
    first = started.enter_context(servers.worker(service.settings))
    job_ids = submit_all(service)
    victim = freeze_in_mid_job(service, first)
    first.kill()
    assert of(service, victim).status in (Status.RUNNING, Status.QUEUED)  # the sweeper alone could have freed it
    started.enter_context(servers.worker(service.settings))
    servers.until(lambda: all_ended(service), what="the end of every job")
    assert_each_ended_once(service, job_ids)
    assert (of(service, victim).attempt, of(service, victim).losses) == (2, 1)
    assert {job.attempt for job in service.jobs() if job.id != victim} == {1}


def test_a_frozen_worker_that_wakes_late_writes_nothing(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    """It wakes while another holds the same row, which is `running` again: only the token tells the two apart."""
    service = started.enter_context(servers.service(configure(**IMPATIENT), own_broker))
    started.enter_context(servers.hilum(service.settings, "sweep"))
    first = started.enter_context(servers.worker(service.settings))
    job_ids = submit_all(service)
    victim = freeze_in_mid_job(service, first)
    servers.until(lambda: of(service, victim).status == Status.QUEUED, what="the sweeper to free the job")
    second = started.enter_context(servers.worker(service.settings))
    assert freeze_in_mid_job(service, second) == victim  # it had been due the longest
    first.send(signal.SIGCONT)
    servers.until(lambda: all_ended(service), what="the end of every job")
    second.send(signal.SIGCONT)
    job_ids.append(service.submit(FILM, explain="gradcam"))
    servers.until(lambda: all_ended(service), what="the end of the last job")
    servers.until(lambda: idle(first) and idle(second), what="both workers to have said what they had to say")
    assert_each_ended_once(service, job_ids)
    assert (of(service, victim).attempt, of(service, victim).losses) == (3, 2)


def idle(worker: Running) -> bool:
    """Whether no process of the worker computes."""
    return all(process.cpu_percent(0.3) < 5 for process in worker.tree())


def test_a_job_that_kills_every_worker_fails_and_lets_the_others_live(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    settings = configure(**IMPATIENT, max_attempts=2)
    service = started.enter_context(servers.service(settings, own_broker))
    started.enter_context(servers.hilum(service.settings, "sweep"))
    poison = service.submit(FILM, priority="stat")
    for losses in (1, 2):
        victim = started.enter_context(servers.worker(service.settings))
        assert freeze_in_mid_job(service, victim) == poison
        victim.kill()
        servers.until(lambda n=losses: of(service, poison).losses == n, what="the sweeper to see the loss")  # type: ignore[misc]
    assert of(service, poison).status == Status.FAILED
    assert (of(service, poison).error or {})["code"] == "worker_lost"
    good = service.submit(FILM)
    started.enter_context(servers.worker(service.settings))
    servers.until(lambda: service.unfinished() == 0, what="the end of the good job")
    assert service.ends() == {poison: ["job.failed"], good: ["job.succeeded"]}
