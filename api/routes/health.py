"""Is it alive, is it ready, how much waits: for orchestrators, load balancers and Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from api import problems
from api.deps import Parts, PartsDep
from api.problems import documented
from shared import backlog, errors, logs, metrics, queue, workers
from shared.db import reading
from shared.errors import HilumError, Unavailable
from shared.schemas import Frozen

router = APIRouter(tags=["service"])

CHECK_S = 3.0  # and at most broker_timeout_s
CHECKS_AT_ONCE = 8

log = logs.get("api.health")

# Checks of a part that hangs hold threads of their own, so that they never starve the routes of theirs.
_threads = CapacityLimiter(CHECKS_AT_ONCE)


class Alive(Frozen):
    """The process answers."""

    status: str = "ok"


class Ready(Frozen):
    """Every part that the service needs, and `ok` for each."""

    status: str = "ready"
    parts: dict[str, str]


@router.get("/healthz", summary="Alive: the process answers")
async def alive() -> Alive:
    """Asks nothing of anyone: a database that is away is no reason to restart this process."""
    return Alive()


@router.get(
    "/readyz",
    response_model=Ready,
    summary="Ready: database, broker, storage and a worker answer",
    responses=documented(errors.Unavailable),
)
async def ready(request: Request, parts: PartsDep) -> Response:
    """503 names each part that fails, and how."""
    checks = {"database": _database, "broker": _broker, "storage": _storage, "workers": _workers}
    answers = await asyncio.gather(*(_checked(parts, check) for check in checks.values()))
    found = dict(zip(checks, answers, strict=True))
    failing = {name: answer for name, answer in found.items() if answer != "ok"}
    if not failing:
        return Response(Ready(parts=found).model_dump_json(), media_type="application/json")
    detail = "; ".join(f"{name}: {answer}" for name, answer in failing.items())
    error = Unavailable(detail, code="not_ready", parts=found)
    return problems.render(error, instance=request.url.path, request_id=request.scope.get("request_id"))


@router.get(
    "/metrics",
    summary="Prometheus metrics of this process and of the queue",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "the text format of Prometheus"}},
)
def scrape(parts: PartsDep) -> Response:
    """Counters of this process; the queue's state is read from the database now, so every process says the same."""
    text = generate_latest(metrics.REGISTRY)
    try:
        with reading(parts.database) as session:
            text += generate_latest(_registry(metrics.of_backlog(backlog.measure(session))))
    except SQLAlchemyError as error:
        # Alert on the absence of the queue's gauges; the process's own counters are still worth having.
        log.warning("backlog_unknown", error=type(error).__name__)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class _Once(Collector):
    """Gauges that were read for this one scrape."""

    def __init__(self, gauges: Iterable[Metric]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        return self._gauges


def _registry(gauges: Iterable[Metric]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Once(gauges))
    return registry


async def _checked(parts: Parts, check: Callable[[Parts], str]) -> str:
    """What `check` says, or that it does not answer in time."""
    limit_s = min(CHECK_S, parts.settings.broker_timeout_s)
    asked = anyio.to_thread.run_sync(check, parts, limiter=_threads, abandon_on_cancel=True)
    try:
        return await asyncio.wait_for(asked, limit_s)
    except TimeoutError:
        return f"no answer within {limit_s:g} s"


def _database(parts: Parts) -> str:
    try:
        with reading(parts.database) as session:
            backlog.measure(session)
    except SQLAlchemyError as error:
        log.warning("database_not_ready", error=str(getattr(error, "orig", error)))
        return "does not answer, or `hilum migrate` has not run"
    return "ok"


def _broker(parts: Parts) -> str:
    if not parts.settings.broker_url:
        return "none is set (REDIS_URL)"
    return "ok" if queue.answers(parts.settings) else "does not answer"


def _storage(parts: Parts) -> str:
    try:
        parts.storage.check()
    except HilumError as error:
        return error.detail
    return "ok"


def _workers(parts: Parts) -> str:
    try:
        with reading(parts.database) as session:
            seen = workers.alive(session, backlog.WORKER_SEEN_S)
            serving = {name for worker in seen if not worker.draining for name in worker.queues}
    except SQLAlchemyError:
        return "unknown while the database does not answer"
    if queue.ANALYZE not in serving:
        return f"none that analyses was seen in the last {backlog.WORKER_SEEN_S:g} s"
    return "ok"
