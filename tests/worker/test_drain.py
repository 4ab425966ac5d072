"""Draining and scaling down: a worker that drains finishes what it has, takes nothing more, and loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from shared import backlog, deeds, ledger, workers
from shared.db import Database, open_database, reading, transaction
from shared.deeds import HILUM
from shared.errors import NotFound
from shared.models import Job, Worker
from shared.queue import ANALYZE, EXPLAIN, ringer
from shared.schemas import JobView, Status
from shared.settings import ROOT, Settings, environment
from tests import builders, servers
from tests.servers import Broker, until
from worker import loop
from worker.loop import Pulse
from worker.parts import Parts

Submit = Callable[..., str]
JobOf = Callable[[str], JobView]

FILM = builders.png(builders.chest(1))
LARGE = builders.png(builders.chest(2, (2400, 2200)))

processes = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with servers.broker(tmp_path) as found:
        yield found


@pytest.fixture
def running(settings: Settings, broker: Broker) -> Settings:
    """Settings of worker processes that look every half second whether they are to drain."""
    return settings.model_copy(update={"broker_url": broker.url, "threads": 1, "pulse_s": 0.5})


@pytest.fixture
def ringing(running: Settings) -> Iterator[Database]:
    """A database whose bells reach the broker."""
    opened = open_database(running, ring=ringer(running))
    yield opened
    opened.engine.dispose()


def hilum(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *words]
    return subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, timeout=250)


def present(database: Database) -> dict[str, Worker]:
    with reading(database) as session:
        return {row.id: row for row in session.scalars(select(Worker))}


def jobs_of(database: Database) -> list[Job]:
    with reading(database) as session:
        return list(session.scalars(select(Job).order_by(Job.id)))


def heard(running: Settings, worker: servers.Running, word: str) -> None:
    until(lambda: f'"event": "{word}"' in worker.said(), what=word)


# ---------------------------------------------------------------- processes


@processes
def test_a_drained_worker_takes_nothing_until_it_may_again(running, submit, job_of: JobOf, database: Database):
    with servers.worker(running, "--queues", "analyze") as worker:
        first = submit(FILM)
        until(lambda: job_of(first).status.terminal, what="a job before")
        (worker_id,) = present(database)
        assert hilum(running, "worker", "drain", worker_id).stdout == f"{worker_id}\n"
        heard(running, worker, "drains")
        second = submit(FILM)
        for _ in range(3):
            ringer(running)(ANALYZE)
        until(lambda: worker.said().count('"event": "bell_passed_on"') >= 2, what="bells that are passed on")
        assert job_of(second).status is Status.QUEUED
        assert worker.process.is_running()
        (said,) = [json.loads(line) for line in hilum(running, "worker", "list", "--json").stdout.splitlines()]
        assert (said["id"], said["queues"], said["draining"], said["holds"]) == (worker_id, ["analyze"], True, [])
        assert said["runtime"]["name"] == "openvino"
        assert "  drains  openvino cpu " in hilum(running, "worker", "list").stdout
        assert hilum(running, "worker", "drain", "--all", "--undo").stdout == f"{worker_id}\n"
        until(lambda: job_of(second).status is Status.SUCCEEDED, what="a job after")
    with reading(database) as session:
        *_, drained, undrained = deeds.export(session)
    assert (drained.action, undrained.action) == ("worker.drained", "worker.undrained")
    assert {(deed.tenant, deed.actor) for deed in (drained, undrained)} == {(None, deeds.typed_by()["actor"])}
    assert drained.detail == undrained.detail == {"workers": [worker_id]}


@processes
def test_scaling_down_loses_nothing(running, submit, ringing: Database):
    """Two workers share a queue; one drains in mid-job, is ended when it holds nothing, and the other does the rest."""
    with servers.worker(running, "--queues", "analyze") as leaving:
        (leaver,) = present(ringing)
        with servers.worker(running, "--queues", "analyze") as staying:
            for _ in range(10):
                submit(LARGE)
            ringer(running)(ANALYZE)
            until(lambda: present(ringing)[leaver].holds, what="a row in the hands of the worker that leaves")
            hilum(running, "worker", "drain", leaver)
            heard(running, leaving, "drains")
            until(lambda: not present(ringing)[leaver].holds, what="empty hands")
            left = [job.id for job in jobs_of(ringing) if not Status(job.status).terminal]
            leaving.process.send_signal(signal.SIGTERM)
            assert leaving.process.wait(30) == 0
            assert leaver not in present(ringing)
            until(lambda: all(Status(job.status).terminal for job in jobs_of(ringing)), what="every job")
            assert staying.process.is_running()
    ended = jobs_of(ringing)
    assert {(job.status, job.attempt, job.losses) for job in ended} == {("succeeded", 1, 0)}
    assert len(ended) == 10
    assert left


@processes
def test_workers_of_different_kinds_share_one_queue(running, submit, ringing: Database):
    """Rows carry no device: whoever is free takes the next one, with the runtime and the batch of its own settings."""
    other = running.model_copy(update={"runtime": "torch", "precision": "f32", "claim_batch": 2})
    with (
        servers.worker(running, "--queues", "analyze,explain"),
        servers.worker(other, "--queues", "analyze"),
    ):
        kinds = {row.runtime["name"] for row in present(ringing).values() if row.runtime}
        assert kinds == {"openvino", "torch"}

        def both_worked() -> bool:
            submit(FILM, explain=["gradcam"])
            submit(FILM)
            ringer(running)(ANALYZE)
            return kinds == {job.result["runtime"]["name"] for job in jobs_of(ringing) if job.result}

        until(both_worked, what="a job by each of them")
        until(lambda: all(Status(job.status).terminal for job in jobs_of(ringing)), what="every job")
    assert {(job.status, job.attempt) for job in jobs_of(ringing)} == {("succeeded", 1)}


@processes
def test_the_commands_say_what_is_wrong(settings: Settings, database: Database):
    unknown = hilum(settings, "worker", "drain", "nobody:1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "There is no worker nobody:1" in unknown.stderr
    for words in ((), ("nobody:1", "--all")):
        assert hilum(settings, "worker", "drain", *words).returncode == 2
    assert hilum(settings, "worker", "drain", "--all").stdout == ""
    assert hilum(settings, "worker", "list").stdout == ""
    with reading(database) as session:
        assert list(deeds.export(session)) == []  # nobody was told


# ---------------------------------------------------------------- rows and bells


def test_a_bell_that_a_draining_worker_hears_is_passed_on(parts: Parts, submit: Submit, job_of: JobOf, rung: list[str]):
    job_id = submit(FILM)
    rung.clear()
    parts.draining.set()
    loop.drain(parts, ANALYZE)
    loop.drain(parts, EXPLAIN)
    assert rung == ["analyze"]
    assert job_of(job_id).status is Status.QUEUED
    parts.draining.clear()
    loop.drain(parts, ANALYZE)
    assert job_of(job_id).status is Status.SUCCEEDED
    parts.draining.set()
    rung.clear()
    loop.drain(parts, ANALYZE)
    assert rung == []


def test_the_pulse_learns_of_the_drain_and_says_what_is_held(parts: Parts, database: Database):
    pulse = Pulse(parts)
    parts.held |= {"job_2", "job_1"}
    pulse._say()
    assert present(database)[parts.worker_id].holds == ["job_1", "job_2"]
    with transaction(database) as session:
        workers.drain(session, parts.worker_id, by=HILUM)
    pulse._say()
    assert parts.draining.is_set()
    with transaction(database) as session:
        workers.drain(session, None, draining=False, by=HILUM)
    pulse._say()
    assert not parts.draining.is_set()


def test_a_worker_that_died_while_it_drained_does_not_silence_the_next_of_its_name(database: Database):
    """A container that restarts has the same host name and often the same process number."""
    with transaction(database) as session:
        workers.beat(session, "pod:7", first=True, queues=["analyze"])
        assert workers.drain(session, "pod:7", by=HILUM) == ["pod:7"]
        assert workers.beat(session, "pod:7") is True
    with transaction(database) as session:
        assert workers.beat(session, "pod:7", first=True) is False


def test_only_named_workers_are_told(database: Database):
    with transaction(database) as session:
        for name in ("a:1", "b:1"):
            workers.beat(session, name)
        assert workers.drain(session, "a:1", by=HILUM) == ["a:1"]
        with pytest.raises(NotFound):
            workers.drain(session, "c:1", by=HILUM)
    assert {name: row.draining for name, row in present(database).items()} == {"a:1": True, "b:1": False}
    with transaction(database) as session:
        assert workers.drain(session, None, by=HILUM) == ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("draining", "held", "rings"), [(0, 0, 2), (0, 1, 1), (1, 1, 1), (1, 2, 0), (2, 0, 0), (2, 2, 0)]
)
def test_nobody_rings_for_a_worker_that_drains(
    database: Database, submit: Submit, draining: int, held: int, rings: int
):
    """Two workers; the sweeper rings once for each that could take a row."""
    for _ in range(4):
        submit(FILM)
    with transaction(database) as session:
        for number in range(2):
            workers.beat(session, f"w:{number}", queues=["analyze"])
        for number in range(draining):
            workers.drain(session, f"w:{number}", by=HILUM)
        ledger.claim_next(session, Job, held, lease_s=60)
        owed = backlog.owed(session)
    assert (owed[ANALYZE].rings if owed else 0) == rings
