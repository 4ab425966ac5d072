"""The figures of a run in docs/benchmarks.json, under the name `chaos`."""

from __future__ import annotations

from tests.chaos.plan import Plan


def record(plan: Plan, outcome: object) -> None:
    """Not yet."""
