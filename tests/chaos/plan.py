"""What one run does: how many jobs, on which parts, and which faults in which order. The seed decides all of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WORKER_KINDS = ("kill_child", "kill_tree", "freeze_worker", "poison")
BROKER_KINDS = ("broker_restart", "broker_wipe", "broker_flush")
SERVICE_KINDS = ("api_restart", "sweeper_kill", "sender_kill", "freeze_other", "client_cut")
RECEIVER_KINDS = ("receiver_timeout", "receiver_error", "receiver_drop")
DATABASE_KINDS = {"postgresql": ("database_restart", "cut_connections"), "sqlite": ("database_lock",)}

DATABASES = tuple(DATABASE_KINDS)
BROKERS = ("redis", "amqp")
SABOTAGES = ("compare-and-set", "sweeper", "fencing")

# Where the death of a worker shall show after seconds; a full run keeps the defaults of the service.
IMPATIENT: Mapping[str, float] = {"lease_s": 4.0, "renew_s": 1.0, "pulse_s": 1.0, "sweep_every_s": 0.3}


@dataclass(frozen=True)
class Plan:
    """One run: `jobs` jobs, `faults` faults of each kind, on `workers` trees of `children` processes each.

    `grace_s` after the last fault, what has not ended is stuck; after `limit_s` in all, nothing more is submitted.
    """

    jobs: int
    seed: int
    database: str = "postgresql"
    broker: str = "redis"
    faults: int = 50
    kinds: tuple[str, ...] = ()
    sabotage: str = ""
    workers: int = 3
    children: int = 2
    clients: int = 6
    window: int = 40
    grace_s: float = 120.0
    limit_s: float = 4 * 3600.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def kinds_of(database: str) -> tuple[str, ...]:
    """Every kind of fault that there is with this database."""
    return (*WORKER_KINDS, *BROKER_KINDS, *DATABASE_KINDS[database], *SERVICE_KINDS, *RECEIVER_KINDS)


def schedule(plan: Plan) -> list[str]:
    """The faults in the order in which they are made, mixed by the seed."""
    faults = [kind for kind in plan.kinds or kinds_of(plan.database) for _ in range(plan.faults)]
    random.Random(plan.seed).shuffle(faults)
    return faults
