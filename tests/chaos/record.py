"""The figures of a run in docs/benchmarks.json, under the name `chaos`."""

from __future__ import annotations

from dataclasses import replace

from tests.benchmarks import report, result
from tests.benchmarks.result import Result
from tests.chaos.about import ABOUT
from tests.chaos.plan import Plan
from tests.chaos.run import Outcome
from tests.chaos.verdict import RECOVERY_S

FULL = Plan(jobs=10_000, seed=1)


def record(plan: Plan, outcome: Outcome) -> None:
    """Write the run in place of the one before; what is less than the whole run, or not as the service is, is not."""
    asked = Plan(jobs=FULL.jobs, seed=plan.seed, faults=FULL.faults)
    if replace(plan, jobs=min(plan.jobs, FULL.jobs), faults=min(plan.faults, FULL.faults)) != asked:
        return
    found = outcome.verdict
    median, recoveries = found.recovery_median_s, sorted(found.recoveries_s) or [0.0]
    result.record(
        Result(
            name=ABOUT.name,
            value=round(median, 3),
            unit=ABOUT.unit,
            baseline=RECOVERY_S,
            ratio=round(median / RECOVERY_S, 4),
            spread=(round(recoveries[0] / RECOVERY_S, 4), round(recoveries[-1] / RECOVERY_S, 4)),
            figures={
                "seed": plan.seed,
                "faults": dict(outcome.faults),
                "seconds": round(outcome.seconds),
                "accepted": found.accepted,
                "finished": found.finished,
                "lost": found.lost,
                "duplicated": found.duplicated,
                "stuck": found.stuck,
                "events_owed": found.owed,
                "events_delivered": found.delivered,
                "deliveries_repeated": found.repeated,
                "recoveries": len(found.recoveries_s),
                "recovery_median_s": round(median, 3),
                "recovery_max_s": round(recoveries[-1], 3),
            },
        )
    )
    report.write()
