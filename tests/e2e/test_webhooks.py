"""Webhooks through the whole service: real processes, a real broker and a real receiver, which may misbehave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests import builders, receivers, servers
from tests.e2e.conftest import Configure
from tests.receivers import Receiver, answers, headers_of
from tests.servers import Broker, Running, Service, until

FILM = builders.png(builders.chest(5))
# Seconds instead of minutes and hours; a receiver on this machine may be sent to.
IMPATIENT: dict[str, Any] = {
    "webhook_private": True,
    "webhook_schedule_s": "0.5,1,1,1,1,1,1,1",
    "webhook_timeout_s": 20.0,
    "lease_s": 2.0,
    "renew_s": 0.5,
    "pulse_s": 1.0,
    "sweep_every_s": 0.3,
}

Deliver = Callable[[], Running]


@pytest.fixture
def start() -> Iterator[Callable[..., Receiver]]:
    """Start receivers that end with the test."""
    with ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(receivers.receiver(*given, **options))


@pytest.fixture
def service(configure: Configure, own_broker: Broker, database_kind: dict[str, str], started: ExitStack) -> Service:
    """The API and the sweeper; the test starts who delivers."""
    found = started.enter_context(servers.service(configure(**IMPATIENT, **database_kind), own_broker))
    started.enter_context(servers.hilum(found.settings, "sweep"))
    return found


@pytest.fixture
def deliver(service: Service, started: ExitStack) -> Deliver:
    """Start a process that delivers and does nothing else."""
    return lambda: started.enter_context(servers.hilum(service.settings, "worker", "--queues", "deliver"))


def make(service: Service, url: str, *events: str) -> dict[str, Any]:
    with service.client() as client:
        answer = client.post("/v1/webhooks", json={"url": url, "events": list(events)})
    assert answer.status_code == 201, answer.text
    return answer.json()


def send_tests(service: Service, webhook: dict[str, Any], count: int) -> set[str]:
    """Ask for test events; the ids of the events."""
    with service.client() as client:
        made = [client.post(f"/v1/webhooks/{webhook['id']}/test") for _ in range(count)]
    assert {answer.status_code for answer in made} == {202}
    return {answer.json()["event"]["id"] for answer in made}


def log_of(service: Service, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    with service.client() as client:
        answer = client.get(f"/v1/webhooks/{webhook['id']}/deliveries", params={"limit": 100})
    return answer.json()["deliveries"]


def all_arrived(service: Service, webhook: dict[str, Any]) -> bool:
    return {row["status"] for row in log_of(service, webhook)} == {"succeeded"}


def ids_of(receiver: Receiver) -> list[str]:
    return [headers_of(request)["webhook-id"] for request in receiver.seen]


def test_a_job_that_ends_is_told_signed(
    service: Service, deliver: Deliver, started: ExitStack, start: Callable[..., Receiver]
) -> None:
    receiver = start(receivers.one_after_another(answers(503, b""), answers(204, b"")))
    webhook = make(service, receiver.url, "job.succeeded", "explanation.succeeded")
    deliver()
    started.enter_context(servers.worker(service.settings, "--queues", "analyze,explain"))
    job_id = service.submit(FILM, explain="gradcam")
    requests = receiver.wait_for(3, within_s=90)
    said = [Webhook(webhook["secret"]).verify(request.body, request.headers) for request in requests]
    assert {event["data"]["job"] for event in said} == {job_id}
    assert {event["type"] for event in said} == {"job.succeeded", "explanation.succeeded"}
    assert len(set(ids_of(receiver))) == 2  # one of the three is the same event again
    until(lambda: all_arrived(service, webhook), what="both events to arrive")
    assert not any(event["test"] for event in said)


def test_what_a_killed_process_was_sending_is_sent_again(
    service: Service, deliver: Deliver, start: Callable[..., Receiver]
) -> None:
    receiver = start(receivers.never_answers)
    webhook = make(service, receiver.url)
    first = deliver()
    owed = send_tests(service, webhook, 6)
    receiver.wait_for(4)  # its share of the slots
    held = set(ids_of(receiver))
    first.kill()
    receiver.behave = answers()
    deliver()
    until(lambda: all_arrived(service, webhook), what="every event to arrive")
    assert set(ids_of(receiver)) == owed
    assert all(ids_of(receiver).count(event_id) == 2 for event_id in held)
    tries = {row["event"]["id"]: [a["error"] for a in row["attempts"]] for row in log_of(service, webhook)}
    assert {event_id for event_id, errors in tries.items() if errors == ["worker_lost", None]} == held


def test_sigterm_hands_back_in_seconds(service: Service, deliver: Deliver, start: Callable[..., Receiver]) -> None:
    receiver = start(receivers.never_answers)
    webhook = make(service, receiver.url)
    first = deliver()
    owed = send_tests(service, webhook, 2)
    receiver.wait_for(2)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(15) == 0, first.said()[-3000:]
    assert [[a["error"] for a in row["attempts"]] for row in log_of(service, webhook)] == [["handed_back"]] * 2
    receiver.behave = answers()
    deliver()
    until(lambda: all_arrived(service, webhook), what="every event to arrive")
    assert set(ids_of(receiver)) == owed


def test_the_broker_is_not_needed(service: Service, deliver: Deliver, start: Callable[..., Receiver]) -> None:
    receiver = start()
    webhook = make(service, receiver.url)
    deliver()
    send_tests(service, webhook, 1)
    receiver.wait_for(1, within_s=60)
    service.broker.stop()
    send_tests(service, webhook, 2)
    receiver.wait_for(3, within_s=60)
    until(lambda: all_arrived(service, webhook), what="every event to arrive")
