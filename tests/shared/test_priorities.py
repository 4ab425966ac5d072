"""The order of service: a higher priority overtakes what is not overdue yet, and nothing waits for ever."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import update

from shared import jobs, ledger
from shared.db import Database, transaction
from shared.models import Job
from shared.schemas import Priority
from shared.settings import ROOT, Settings
from tests.benchmarks import waiting_times
from tests.benchmarks.waiting_times import FIFO, ORDERS, OURS, STRICT, Film

SUBMITTED = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "0" * 64}


@pytest.fixture
def arrived(database: Database, settings: Settings, tenant_id: str):
    """Submit a job that arrived some minutes ago; its id."""

    def one(priority: Priority, minutes_ago: float = 0.0) -> str:
        job_id, ago = jobs.new_id(), timedelta(minutes=minutes_ago)
        with transaction(database) as session:
            job = jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, priority=priority, **SUBMITTED)
            values = {name: getattr(job, name) - ago for name in ("created_at", "due_at", "ready_at")}
            session.execute(update(Job).where(Job.id == job_id).values(**values))
        return job_id

    return one


def served(database: Database) -> list[str]:
    order = []
    with transaction(database) as session:
        while claims := ledger.claim_next(session, Job, 1, lease_s=60):
            order.append(claims[0].id)
    return order


def test_an_overdue_routine_job_is_served_before_fresh_ones(arrived, database):
    stat, urgent = arrived("stat"), arrived("urgent")
    overdue, patient = arrived("routine", minutes_ago=61), arrived("routine", minutes_ago=10)
    late = arrived("urgent", minutes_ago=7)
    assert served(database) == [late, overdue, stat, urgent, patient]


def test_a_stat_overtakes_what_is_not_overdue(arrived, database):
    routine, urgent, stat = arrived("routine", minutes_ago=58), arrived("urgent", minutes_ago=4), arrived("stat")
    assert served(database) == [stat, urgent, routine]


def test_a_long_queue_is_served_by_due_at_whatever_the_batch(arrived, database, settings):
    draw = random.Random(4)
    limits = settings.waiting_limits_s
    due: dict[str, float] = {}
    for _ in range(60):
        priority: Priority = draw.choice(["stat", "urgent", "routine"])
        minutes = draw.uniform(0, 120)
        due[arrived(priority, minutes)] = limits[priority] / 60 - minutes
    order: list[str] = []
    with transaction(database) as session:
        while claims := ledger.claim_next(session, Job, draw.randint(1, 7), lease_s=60):
            order += [claim.id for claim in claims]
    assert order == sorted(due, key=due.__getitem__)


def test_limits_are_settings(database, settings, tenant_id):
    patient = settings.model_copy(update={"wait_limit_routine_s": 7200.0, "wait_limit_stat_s": 5.0})
    with transaction(database) as session:
        for priority, limit_s in (("routine", 7200), ("urgent", 300), ("stat", 5)):
            job = jobs.submit(
                session, patient, tenant_id=tenant_id, job_id=jobs.new_id(), priority=priority, **SUBMITTED
            )
            assert job.due_at - job.created_at == timedelta(seconds=limit_s)


# ---------------------------------------------------------------- the simulation that docs/operations.md shows


@pytest.fixture(scope="module")
def rounds():
    films = waiting_times.arrivals(1, 400)
    return {name: waiting_times.simulated(films, limits_s) for name, limits_s in ORDERS.items()}


def test_every_order_serves_every_film_once_and_never_early(rounds):
    for found in rounds.values():
        assert sorted(film.number for film, _ in found) == list(range(400))
        assert all(wait_s >= 0 for _, wait_s in found)
    totals = [sum(film.service_s for film, _ in found) for found in rounds.values()]
    assert max(totals) - min(totals) < 1e-6


def test_first_come_is_first_served(rounds):
    assert [film.number for film, _ in rounds[FIFO]] == list(range(400))


def modelled(films: Sequence[Film], limits_s: dict[str, float]) -> list[tuple[Film, float]]:
    """What the ledger should do, as a heap of due times: fast enough for the whole of what the page shows."""
    waiting: list[tuple[float, int]] = []
    served: list[tuple[Film, float]] = []
    arrived, now_s = 0, 0.0
    while len(served) < len(films):
        now_s = now_s if waiting else max(now_s, films[arrived].at_s)
        while arrived < len(films) and films[arrived].at_s <= now_s:
            heapq.heappush(waiting, (films[arrived].at_s + limits_s[films[arrived].priority], arrived))
            arrived += 1
        film = films[heapq.heappop(waiting)[1]]
        served.append((film, now_s - film.at_s))
        now_s += film.service_s
    return served


@pytest.mark.parametrize("name", ORDERS)
def test_the_ledger_serves_as_the_model_does(rounds, name):
    assert rounds[name] == modelled(waiting_times.arrivals(1, 400), ORDERS[name])


def test_the_page_shows_what_the_model_says():
    films = [waiting_times.arrivals(seed, waiting_times.FILMS) for seed in waiting_times.SEEDS]
    found = {
        name: [waiting_times.waits(modelled(each, limits_s)) for each in films] for name, limits_s in ORDERS.items()
    }
    assert waiting_times.table(found) in (ROOT / "docs" / "operations.md").read_text("utf-8")


@pytest.mark.parametrize("name", [OURS, STRICT])
def test_nobody_is_served_before_one_that_waits_and_is_due_earlier(rounds, name):
    """Looked at again from outside: at each start, no waiting film has an earlier due time than the one that starts."""
    limits_s = ORDERS[name]
    starts = [(film.at_s + wait_s, film) for film, wait_s in rounds[name]]
    for position, (now_s, film) in enumerate(starts):
        waiting = [other for _, other in starts[position + 1 :] if other.at_s <= now_s]
        due = film.at_s + limits_s[film.priority]
        assert all(other.at_s + limits_s[other.priority] >= due for other in waiting)


def test_strict_rank_never_serves_a_lower_one_first(rounds):
    rank = {"stat": 0, "urgent": 1, "routine": 2}
    starts = [(film.at_s + wait_s, film) for film, wait_s in rounds[STRICT]]
    for position, (now_s, film) in enumerate(starts):
        waiting = [other for _, other in starts[position + 1 :] if other.at_s <= now_s]
        assert all(rank[other.priority] >= rank[film.priority] for other in waiting)
