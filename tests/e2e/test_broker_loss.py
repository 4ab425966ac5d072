"""The broker is a bell: flushed, frozen or gone, it costs no job and stops no client."""

from __future__ import annotations

import time
from contextlib import ExitStack

from shared.schemas import Status
from tests import builders, servers
from tests.e2e.conftest import Configure
from tests.e2e.test_crash import all_ended, assert_each_ended_once, running
from tests.servers import Broker, Service

FILM = builders.png(builders.chest(3))
# So long that no worker looks for unannounced work by itself before the test is over: only the sweeper can ring.
NO_PULSE_S = 300.0
SEEN_S = 25.0  # a worker that has said nothing for 30 s is no worker to ring for
# `accept` may wait for the broker's time limit once, and for nothing else.
TIMEOUT_S = 3.0
SLACK_S = 2.0


def submit_many(service: Service, count: int) -> list[str]:
    return [service.submit(FILM, explain="gradcam") for _ in range(count)]


def test_bells_that_are_flushed_are_rung_again_for_an_idle_worker(
    configure: Configure, own_broker: Broker, database_kind: dict[str, str], started: ExitStack
) -> None:
    settings = configure(pulse_s=NO_PULSE_S, sweep_every_s=0.3, **database_kind)
    service = started.enter_context(servers.service(settings, own_broker))
    job_ids = submit_many(service, 5)
    assert own_broker.client.llen("analyze") == 5
    own_broker.client.flushall()
    started.enter_context(servers.worker(service.settings))
    assert {job.status for job in service.jobs()} == {Status.QUEUED}  # no bell, no work
    started.enter_context(servers.hilum(service.settings, "sweep"))
    servers.until(lambda: all_ended(service), within_s=SEEN_S, what="the sweeper's bells to be heard")
    assert_each_ended_once(service, job_ids)


def test_bells_that_are_flushed_are_rung_again_for_a_busy_worker(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    service = started.enter_context(servers.whole_service(configure(sweep_every_s=0.3), own_broker))
    job_ids = submit_many(service, 4)
    servers.until(lambda: running(service) or all_ended(service), what="the worker to be busy")
    for _ in range(3):
        own_broker.client.flushall()
        job_ids += submit_many(service, 3)
    own_broker.client.flushall()
    servers.until(lambda: all_ended(service), what="the end of every job")
    assert_each_ended_once(service, job_ids)


def test_a_broker_that_swallows_everything_holds_no_client_for_long(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    settings = configure(sweep_every_s=0.3, broker_timeout_s=TIMEOUT_S)
    service = started.enter_context(servers.whole_service(settings, own_broker))
    service.submit(FILM)
    servers.until(lambda: all_ended(service), what="the first job")
    own_broker.freeze()
    began = time.monotonic()
    job_ids = [service.submit(FILM)]
    assert time.monotonic() - began < TIMEOUT_S + SLACK_S
    began = time.monotonic()
    job_ids.append(service.submit(FILM))  # by now the broker is known to be deaf
    assert time.monotonic() - began < SLACK_S
    with service.client() as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["parts"]["broker"] != "ok"
    own_broker.thaw()
    servers.until(lambda: all_ended(service), what="the jobs of the meantime")
    assert {job_id: service.ends()[job_id] for job_id in job_ids} == {job_id: ["job.succeeded"] for job_id in job_ids}


def test_a_broker_that_was_gone_and_comes_back_empty_is_heard_again(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    service = started.enter_context(servers.whole_service(configure(sweep_every_s=0.3, pulse_s=2.0), own_broker))
    own_broker.stop()
    began = time.monotonic()
    job_id = service.submit(FILM, explain="gradcam")
    assert time.monotonic() - began < SLACK_S
    # Without any broker the worker's own look finds the job.
    servers.until(lambda: all_ended(service), what="the job without a broker")
    own_broker.start()
    later = service.submit(FILM, explain="gradcam")
    servers.until(lambda: all_ended(service), what="the job after the broker came back")
    assert_each_ended_once(service, [job_id, later])
    with service.client() as client:
        servers.until(lambda: client.get("/readyz").status_code == 200, what="the service to be ready again")
