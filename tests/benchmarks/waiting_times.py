"""How long each priority waits at 95 % load: Hilum's order of service against first come first served and strict rank.

Time is simulated and the ledger is real: films arrive as rows, and whenever the one worker is free `ledger.claim_next`
says which is served next. The three orders are nothing but waiting limits, that is settings: all alike, ours, and so
far apart that a lower priority is never overdue.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import insert
from sqlalchemy.orm import Session

from api.migrate import migrate
from shared import ledger, tenants
from shared.db import Database, open_database, transaction
from shared.models import Job
from shared.schemas import Status
from shared.settings import Settings
from tests.benchmarks.result import About, Result, compared
from tests.benchmarks.stage import HOMES

SEEDS = (1, 2, 3, 4, 5)
FILMS = 4000
LOAD = 0.95
SERVICE_S = 90.0  # mean of one worker; only its ratio to the limits matters
SHARES = {"stat": 0.10, "urgent": 0.30, "routine": 0.60}
YEAR_S = 365 * 86_400.0
START = datetime(2020, 1, 1, tzinfo=UTC)
STEPS_AT_ONCE = 250  # in one transaction: nothing here must survive a power cut

OURS, FIFO, STRICT = "due_at (ours)", "first come, first served", "strict, without limit"
ORDERS = {
    OURS: Settings().waiting_limits_s,
    FIFO: dict.fromkeys(SHARES, 0.0),
    STRICT: {"stat": 0.0, "urgent": YEAR_S, "routine": 2 * YEAR_S},
}

ABOUT = About(
    name="waiting_times",
    unit="s, longest wait of a routine film",
    means="Longest wait of a routine film at 95 % load, in simulated time on the real ledger (SQLite): films arrive at "
    f"random (Poisson; {SHARES['stat']:.0%} stat, {SHARES['urgent']:.0%} urgent, {SHARES['routine']:.0%} routine), one "
    f"worker takes {SERVICE_S:g} s on average (exponential) and serves by `due_at` with the default limits of 0, 5 and "
    "60 minutes. Same arrivals and service times for every order; one round per seed, so a run repeats exactly. The "
    "distributions of every priority are in docs/operations.md, Waiting times.",
    baseline="the same films by strict rank without a limit: every stat before every urgent before every routine",
    at_most=1.0,
)

Waits = dict[str, list[float]]  # seconds by priority


@dataclass(frozen=True)
class Film:
    """A film that arrives `at_s` seconds after the start and keeps a worker busy for `service_s`."""

    number: int
    at_s: float
    service_s: float
    priority: str


@dataclass
class Round:
    """One worker in simulated time: what has arrived, and when the worker is free again."""

    films: Sequence[Film]
    limits_s: dict[str, float]
    tenant_id: str
    arrived: int = 0
    now_s: float = 0.0
    served: list[tuple[Film, float]] = field(default_factory=list)


def run() -> Result:
    """Every order over every seed; prints the distribution of the waits of each priority."""
    found: dict[str, list[Waits]] = {name: [] for name in ORDERS}
    for seed in SEEDS:
        films = arrivals(seed, FILMS)
        for name, limits_s in ORDERS.items():
            found[name].append(waits(simulated(films, limits_s)))
        longest = [f"{name} {max(rounds[-1]['routine']):.0f} s" for name, rounds in found.items()]
        print(f"  seed {seed}: {', '.join(longest)}", flush=True)
    print(table(found))
    ours, strict = ([max(one["routine"]) for one in found[name]] for name in (OURS, STRICT))
    return compared(ABOUT, ours, strict)


def arrivals(seed: int, count: int) -> list[Film]:
    """So many films at LOAD, the same for the same seed."""
    draw, at_s, films = random.Random(seed), 0.0, []
    for number in range(count):
        at_s += draw.expovariate(LOAD / SERVICE_S)
        (priority,) = draw.choices(list(SHARES), list(SHARES.values()))
        films.append(Film(number, at_s, draw.expovariate(1 / SERVICE_S), priority))
    return films


def simulated(films: Sequence[Film], limits_s: dict[str, float]) -> list[tuple[Film, float]]:
    """The films in the order in which the ledger served them, each with its wait in seconds."""
    HOMES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="waiting-", dir=HOMES) as folder:
        settings = Settings(home=Path(folder), database_url="")
        migrate(settings)
        database = open_database(settings)
        try:
            return _served(database, films, limits_s)
        finally:
            database.engine.dispose()


def waits(served: Sequence[tuple[Film, float]]) -> Waits:
    """The waits of each priority, without those of the first tenth: the queue begins empty."""
    settled = [(film, wait_s) for film, wait_s in served if film.number >= len(served) // 10]
    return {priority: [wait for film, wait in settled if film.priority == priority] for priority in SHARES}


def table(found: dict[str, list[Waits]]) -> str:
    """The median over the seeds of the median, the 95th percentile and the maximum of every order, in minutes."""
    lines = ["| order of service | priority | p50 | p95 | longest |", "| --- | --- | --- | --- | --- |"]
    for name, rounds in found.items():
        for priority in SHARES:
            kinds = (0.5, 0.95, 1.0)
            values = [statistics.median(_quantile(one[priority], share) for one in rounds) for share in kinds]
            lines.append(f"| {name} | {priority} | " + " | ".join(f"{value / 60:.1f} min" for value in values) + " |")
    return "\n".join(lines)


def _served(database: Database, films: Sequence[Film], limits_s: dict[str, float]) -> list[tuple[Film, float]]:
    with transaction(database) as session:
        one = Round(films, limits_s, tenants.create(session, "hospital").id)
    while len(one.served) < len(films):
        with transaction(database) as session:
            for _ in range(min(STEPS_AT_ONCE, len(films) - len(one.served))):
                _serve_next(session, one)
    return one.served


def _serve_next(session: Session, one: Round) -> None:
    """Let in what has arrived, or wait for the next film; then serve the one that the ledger names."""
    if len(one.served) == one.arrived:
        one.now_s = max(one.now_s, one.films[one.arrived].at_s)
    until = one.arrived
    while until < len(one.films) and one.films[until].at_s <= one.now_s:
        until += 1
    if until > one.arrived:
        session.execute(insert(Job), [_row(film, one) for film in one.films[one.arrived : until]])
        one.arrived = until
    (claim,) = ledger.claim_next(session, Job, 1, lease_s=60)
    film = one.films[int(claim.id)]
    one.served.append((film, one.now_s - film.at_s))
    ledger.settle(session, claim, Status.SUCCEEDED)
    one.now_s += film.service_s


def _row(film: Film, one: Round) -> dict[str, object]:
    """A queued job as `jobs.submit` makes it, at its simulated time."""
    created_at = START + timedelta(seconds=film.at_s)
    due_at = created_at + timedelta(seconds=one.limits_s[film.priority])
    times = {"created_at": created_at, "ready_at": START, "due_at": due_at}
    upload = {"blob_key": "film", "media_type": "image/png", "size": 1, "sha256": "0" * 64, "free": {}}
    return {"id": str(film.number), "tenant_id": one.tenant_id, "priority": film.priority, **times, **upload}


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
