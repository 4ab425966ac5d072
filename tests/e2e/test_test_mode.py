"""Test mode as an integrator meets it: real processes and real receivers, and neither a model nor a worker for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

import httpx
import pytest
from standardwebhooks import Webhook

from shared import canned
from shared.schemas import EventType, JobView, Status
from tests import builders, receivers, servers
from tests.api.test_test_mode import documented
from tests.e2e.conftest import Configure
from tests.receivers import Receiver, answers
from tests.servers import Broker, Service, until

FILM = builders.png(builders.chest(5))
STAY = {"test_queued", "test_running", "test_explanation_queued", "test_explanation_running"}
NAMES = STAY | {"test_succeeded", "test_uncertain", "test_canceled"}
NAMES |= {f"test_rejected_{code}" for code in canned.REASONS}
NAMES |= {f"test_failed_{code}" for code in canned.FAILURES}
NAMES |= {f"test_explanation_failed_{code}" for code in canned.EXPLANATION_FAILURES}


@pytest.fixture
def service(configure: Configure, own_broker: Broker, database_kind: dict[str, str]) -> Iterator[Service]:
    """The API, the sweeper and who delivers, as `hilum up` starts them; what fails for a second is disabled."""
    pauses = {"webhook_schedule_s": "0.5,1,1,1", "webhook_disable_hours": 1 / 3600, "sweep_every_s": 0.3}
    settings = configure(webhook_private=True, **pauses, **database_kind)
    with ExitStack() as stack:
        found = stack.enter_context(servers.service(settings, own_broker))
        stack.enter_context(servers.hilum(found.settings, "sweep"))
        stack.enter_context(servers.hilum(found.settings, "worker", "--queues", "deliver"))
        yield found


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code in (201, 202), answer.text
    return answer.json()


def rehearsing(service: Service) -> Service:
    """The same service with a test key."""
    with service.client() as client:
        wanted = {"name": "integrator", "mode": "test", "scopes": ["submit", "read", "admin"]}
        return replace(service, key=made(client.post("/v1/keys", json=wanted))["key"])


def hook(service: Service, receiver: Receiver) -> dict[str, Any]:
    with service.client() as client:
        return made(client.post("/v1/webhooks", json={"url": receiver.url}))


def heard(receiver: Receiver, secret: str) -> dict[str, dict[str, Any]]:
    """What arrived, each verified, by the id of the event."""
    said = [Webhook(secret).verify(request.body, request.headers) for request in list(receiver.seen)]
    return {event["id"]: event for event in said}


def view(service: Service, job_id: str) -> JobView:
    with service.client() as client:
        return JobView.model_validate_json(client.get(f"/v1/jobs/{job_id}").content)


def ended(job: JobView) -> bool:
    return job.status.terminal and job.explanations["gradcam"].status.terminal


def test_everything_that_can_happen_is_met_with_a_test_key(service: Service) -> None:
    """Every state, every code and every event; `hook` takes the live key, and is all that does."""
    with ExitStack() as stack:
        taking, gone, failing = (
            stack.enter_context(receivers.receiver(answers(status, b""))) for status in (204, 410, 500)
        )
        webhook = hook(service, taking)
        hooks = {hook(service, receiver)["id"]: because for receiver, because in ((gone, "gone"), (failing, "failing"))}
        tester = rehearsing(service)
        ids = {name: tester.submit(FILM, external_id=name, explain="gradcam") for name in sorted(NAMES)}
        with tester.client() as client:
            made(client.post("/v1/batches", files=[("file", ("a.png", FILM)), ("file", ("b.png", FILM))]))
            made(client.post(f"/v1/webhooks/{webhook['id']}/test"))

        def disabled() -> dict[str, str]:
            told = heard(taking, webhook["secret"]).values()
            return {e["data"]["webhook"]: e["data"]["because"] for e in told if e["type"] == "webhook.disabled"}

        def all_heard() -> bool:
            return {e["type"] for e in heard(taking, webhook["secret"]).values()} >= set(get_args(EventType))

        until(lambda: all_heard() and disabled() == hooks, within_s=60, what="every type of event")
        until(lambda: all(ended(view(tester, ids[name])) for name in NAMES - STAY), what="every end")
        explained = [view(tester, ids[name]).explanations["gradcam"] for name in NAMES]
        events = list(heard(taking, webhook["secret"]).values())
    jobs = [view(tester, job_id) for job_id in ids.values()]
    assert {job.status for job in jobs} == set(Status)
    assert {said.status for said in explained} == set(Status) - {Status.REJECTED}
    assert {job.reason.code for job in jobs if job.reason} == documented("Codes of a rejected job")
    failures = [row.error.code for row in (*jobs, *explained) if row.error]
    assert set(failures) == documented("Codes of a failed job")
    assert all(job.test for job in jobs)
    assert {e["type"] for e in events if not e["test"]} == {"webhook.disabled"}  # which is true of live events too
    with tester.client() as client:
        streamed = client.get("/v1/events?after=start&limit=500", headers={"Accept": "application/json"}).json()
    assert {e["type"] for e in streamed["events"]} == set(get_args(EventType)) - {"webhook.test"}
