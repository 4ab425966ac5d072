"""Two hundred requests wait, and nobody else notices: a waiting request holds no thread and no connection."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest

from tests import builders, servers
from tests.e2e.conftest import Configure
from tests.servers import Broker, Service

FILM = builders.png(builders.chest(3, (160, 144)))
POLLS = 100
SUBMITS = 100
# Generous, for the machine may be busy with other things; a starved pool would take the whole wait.
SLOWER = 5.0
SLACK_S = 0.5
WAIT_S = 50

Call = Callable[[], Awaitable[httpx.Response]]


@pytest.fixture(scope="module")
def service(configure: Configure, broker: Broker) -> Iterator[Service]:
    """An API whose jobs nobody works on."""
    with servers.service(configure(), broker) as found:
        yield found


async def median_s(call: Call, times: int) -> float:
    """Seconds that `call` takes, the median of several."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        answer = await call()
        assert answer.status_code in (200, 202), answer.text
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def test_two_hundred_waiting_requests_starve_nobody(service: Service) -> None:
    asyncio.run(_compare(service))


async def _compare(service: Service) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    headers = {"Authorization": f"Bearer {service.key}"}
    options = {"base_url": service.url, "headers": headers, "timeout": WAIT_S + 30, "trust_env": False}
    async with (
        httpx.AsyncClient(**options, limits=limits) as waiting,  # type: ignore[arg-type]
        httpx.AsyncClient(**options) as client,  # type: ignore[arg-type]
    ):

        async def submit(waits: str = "") -> httpx.Response:
            sender = waiting if waits else client
            return await sender.post("/v1/jobs", files={"file": FILM}, headers={"Prefer": waits} if waits else {})

        async def alive() -> httpx.Response:
            return await client.get("/healthz")

        async def held() -> float:
            return servers.metric((await client.get("/metrics")).text, "hilum_http_waiting")

        alone = await median_s(alive, 30), await median_s(submit, 15)
        polled = (await submit()).headers["Location"]
        tasks = [asyncio.create_task(waiting.get(polled, params={"wait": WAIT_S})) for _ in range(POLLS)]
        tasks += [asyncio.create_task(submit(f"wait={WAIT_S}")) for _ in range(SUBMITS)]
        deadline = time.monotonic() + 40
        while await held() < POLLS + SUBMITS:
            assert time.monotonic() < deadline, await held()
            await asyncio.sleep(0.1)
        among = await median_s(alive, 30), await median_s(submit, 15)
        assert not any(task.done() for task in tasks)
        assert among[0] < SLOWER * alone[0] + SLACK_S
        assert among[1] < SLOWER * alone[1] + SLACK_S

        began = time.monotonic()
        assert (await client.post(f"{polled}/cancel")).json()["status"] == "canceled"
        answers = await asyncio.gather(*tasks[:POLLS])
        assert time.monotonic() - began < 10
        assert {answer.json()["status"] for answer in answers} == {"canceled"}
        assert await held() == SUBMITS

        for job in (await client.get("/v1/jobs", params={"limit": 100, "status": "queued"})).json()["jobs"]:
            await client.post(f"/v1/jobs/{job['id']}/cancel")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_client_that_leaves_is_forgotten(service: Service) -> None:
    def held() -> float:
        return servers.metric(httpx.get(f"{service.url}/metrics", trust_env=False).text, "hilum_http_waiting")

    servers.until(lambda: held() == 0, within_s=WAIT_S + 15, what="the waits of other tests to end")
    job_id = service.submit(FILM)
    with pytest.raises(httpx.ReadTimeout), service.client() as client:
        client.get(f"/v1/jobs/{job_id}", params={"wait": 5}, timeout=1)
    assert held() == 1  # it is noticed at the end of its wait, and costs nothing until then
    servers.until(lambda: held() == 0, within_s=15, what="the wait to be given up")


def test_an_api_that_stops_answers_those_who_wait(service: Service) -> None:
    """Each learns the id of its job: a client that did not would submit it again."""
    answers = []
    with servers.api(service.settings) as (url, process), service.client() as client:

        def submit() -> None:
            answers.append(client.post(f"{url}/v1/jobs", files={"file": FILM}, headers={"Prefer": f"wait={WAIT_S}"}))

        threads = [threading.Thread(target=submit) for _ in range(5)]
        for thread in threads:
            thread.start()
        text = f"{url}/metrics"
        servers.until(
            lambda: servers.metric(httpx.get(text, trust_env=False).text, "hilum_http_waiting") == len(threads),
            within_s=30,
        )
        began = time.monotonic()
        process.process.terminate()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - began < 10
        process.process.wait(20)
    assert [answer.status_code for answer in answers] == [202] * len(threads)
    assert len({answer.json()["id"] for answer in answers}) == len(threads)
