"""`hilum worker` as a process: what it holds, how it stops, and what it does without a broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from shared import jobs
from shared.bundles import Bundle
from shared.db import Database, open_database, reading, transaction
from shared.models import Job, Worker
from shared.queue import ANALYZE, ringer
from shared.schemas import JobView, Status
from shared.settings import ROOT, Settings, environment
from tests import builders, servers
from tests.servers import Broker, until
from worker.runtimes import parity
from worker.runtimes.choose import open_predictor

Submit = Callable[..., str]
JobOf = Callable[[str], JobView]

FILM = builders.png(builders.chest(1))
LARGE = builders.png(builders.chest(2, (2400, 2200)))
BOTH_QUEUES = ("--queues", "analyze,explain")


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The processes are tested on SQLite; the rows are tested on both."""
    return f"sqlite:///{tmp_path / 'hilum.db'}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with servers.broker(tmp_path) as found:
        yield found


@pytest.fixture
def settings(settings: Settings, broker: Broker) -> Settings:
    return settings.model_copy(update={"broker_url": broker.url, "threads": 1, "pulse_s": 0.5})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A database whose bells reach the broker."""
    opened = open_database(settings, ring=ringer(settings))
    yield opened
    opened.engine.dispose()


def statuses(database: Database) -> dict[str, int]:
    with reading(database) as session:
        counted = session.execute(select(Job.status, func.count()).group_by(Job.status))
        return {status: count for status, count in counted}


def maps(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/maps").read_text()


def test_only_children_hold_networks_and_nobody_torch(settings: Settings, submit: Submit, job_of: JobOf) -> None:
    job_id = submit(FILM, explain=["gradcam"])
    with servers.worker(settings, *BOTH_QUEUES, "--concurrency", "2") as worker:
        until(lambda: job_of(job_id).explanations["gradcam"].status.terminal, what="the explanation")
        assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED
        parent, *others = worker.tree()
        assert "openvino" not in maps(parent)
        assert any("openvino" in maps(child) for child in others)
        assert not any("libtorch" in maps(process) for process in (parent, *others))


def test_sigterm_ends_a_worker_in_seconds_and_no_row_is_lost(
    settings: Settings, database: Database, submit: Submit
) -> None:
    for _ in range(12):
        submit(LARGE)
    with servers.worker(settings, *BOTH_QUEUES) as worker:
        until(lambda: statuses(database).get("succeeded", 0) >= 1, what="a first diagnosis")
        tree, began = worker.tree(), time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0, worker.said()[-3000:]
        assert time.monotonic() - began < 12
    found = statuses(database)
    assert set(found) <= {"succeeded", "queued"}, found
    assert found["queued"] >= 1
    psutil.wait_procs(tree, timeout=5)
    assert not [process for process in tree if not servers.is_gone(process)]
    with reading(database) as session:
        assert not session.scalars(select(Job.id).where(Job.losses > 0)).all()
        assert not session.scalars(select(Worker.id)).all()


def test_a_worker_works_while_the_broker_is_away(
    settings: Settings, broker: Broker, submit: Submit, job_of: JobOf
) -> None:
    broker.stop()
    first = submit(FILM)
    with servers.worker(settings, *BOTH_QUEUES) as worker:
        until(lambda: job_of(first).status.terminal, what="a job without a broker")
        broker.start()
        second = submit(FILM)
        until(lambda: job_of(second).status.terminal, what="a job after the broker came back")
        broker.stop()
        third = submit(FILM)
        until(lambda: job_of(third).status.terminal, what="a job after the broker left again")
        assert worker.process.is_running()


def test_a_worker_hears_bells_again_after_the_broker_came_back(
    settings: Settings, broker: Broker, submit: Submit, job_of: JobOf
) -> None:
    """A pulse of an hour leaves the bells as the only thing that wakes the worker."""
    settings = settings.model_copy(update={"pulse_s": 3600.0})
    with servers.worker(settings, *BOTH_QUEUES):
        first = submit(FILM)
        until(lambda: job_of(first).status.terminal, what="a job")
        broker.stop()
        time.sleep(1.0)
        broker.start()
        second = submit(FILM)

        def served() -> bool:
            ringer(settings)(ANALYZE)  # as the sweeper would
            time.sleep(0.5)
            return job_of(second).status.terminal

        until(served, what="a job after the broker was restarted")


def test_a_row_over_its_deadline_ends_its_process_and_no_other(
    settings: Settings, database: Database, submit: Submit, job_of: JobOf
) -> None:
    settings = settings.model_copy(update={"job_deadline_s": 2.0, "lease_s": 1.0, "renew_s": 0.3})
    with servers.worker(settings, *BOTH_QUEUES) as worker:
        (child,) = worker.process.children()
        submit(FILM)
        until(lambda: statuses(database) == {"succeeded": 1})
        helpers = [process for process in child.children(recursive=True) if "worker.sandboxed" in process.cmdline()]
        for helper in helpers:  # nothing decodes any more, and nobody says so
            helper.suspend()
        stuck = submit(FILM)
        until(lambda: servers.is_gone(child), what="the end of the process")
        for helper in helpers:
            helper.kill()

        def served() -> bool:
            with transaction(database) as session:
                jobs.expire(session, settings)
            return job_of(stuck).status.terminal

        until(served, what="the job that was stuck")
        assert job_of(stuck).status is Status.SUCCEEDED
        assert job_of(stuck).attempt >= 2
        with reading(database) as session:
            assert session.get_one(Job, stuck).losses >= 1


SOLO = """
import sys
from worker import parts
real = parts.open_predictor
parts.open_predictor = lambda *a, **k: real(*a, **{**k, "device": "cpu"})  # the pool of a GPU worker, without its GPU
from api.cli import main
main()
"""


def test_the_pool_of_a_gpu_worker_works_and_stops(settings: Settings, submit: Submit, job_of: JobOf) -> None:
    on_gpu = settings.model_copy(update={"device": "cuda", "runtime": "torch", "precision": "f32"})
    job_id = submit(FILM, explain=["gradcam"])
    command = [sys.executable, "-c", SOLO, "worker", *BOTH_QUEUES]
    with servers.running("solo", command, settings.home, env=environment(on_gpu)) as worker:
        until(lambda: job_of(job_id).explanations["gradcam"].status.terminal, what="the explanation")
        assert job_of(job_id).explanations["gradcam"].status is Status.SUCCEEDED
        assert not [p for p in worker.process.children() if "worker.sandboxed" not in p.cmdline()]
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(15) == 0


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(tiny: Bundle, compiled_home: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reference = open_predictor(tiny, cache=compiled_home / "cache", runtime="torch", precision="f32")
    gpu = open_predictor(tiny, cache=compiled_home / "cache", device="cuda")
    found = parity.compare(reference, gpu, *parity.synthetic(tiny, 8))
    assert found.max_probability_shift <= 0.02
    assert found.argmax_agreement == 1.0


@pytest.mark.parametrize(
    ("arguments", "values", "sentence"),
    [
        (("--queues", "analyse"), {}, "no queue is called analyse"),
        ((), {"broker_url": ""}, "REDIS_URL names no broker"),
        ((), {"bundle": Path("nowhere")}, "no bundle in nowhere"),
        ((), {"runtime": "openvino", "device": "cuda"}, "HILUM_RUNTIME=torch"),
    ],
)
def test_a_worker_that_cannot_work_says_why_and_ends(
    tmp_path: Path, tiny: Bundle, arguments: tuple[str, ...], values: dict[str, object], sentence: str
) -> None:
    given: dict[str, object] = {"home": tmp_path, "bundle": tiny.root, "broker_url": "redis://127.0.0.1:1/0"}
    settings = Settings.model_validate({**given, **values})
    command = [sys.executable, "-m", "api.cli", "worker", *arguments]
    done = subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
