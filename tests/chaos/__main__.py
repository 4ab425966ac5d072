"""`python -m tests.chaos`: break the service at random and say whether anything was lost; exit code 0 only when not."""

from __future__ import annotations

import argparse
import sys

from tests.chaos import brokers, record
from tests.chaos.plan import BROKERS, DATABASES, IMPATIENT, SABOTAGES, Plan, kinds_of
from tests.chaos.run import Outcome, run

MISSED, MISSING = 1, 2
SHOWN = 20


def main(arguments: list[str] | None = None) -> int:
    """Make one run; 1 when the bar was missed, 2 when a server that it needs is not installed."""
    given = _parsed(arguments)
    plan = Plan(
        jobs=given.jobs,
        seed=given.seed,
        database=given.database,
        broker=given.broker,
        faults=given.faults,
        kinds=tuple(given.kinds.split(",")) if given.kinds else (),
        sabotage=given.sabotage,
        workers=given.workers,
        grace_s=given.grace_s,
        settings=IMPATIENT if given.impatient else {},
    )
    try:
        outcome = run(plan)
    except brokers.Missing as missing:
        print(f"chaos: {missing}", file=sys.stderr)
        return MISSING
    record.record(plan, outcome)
    _tell(plan, outcome)
    return 0 if outcome.kept else MISSED


def _tell(plan: Plan, outcome: Outcome) -> None:
    found = outcome.verdict
    print(f"\n{outcome.seconds:.0f} s on {plan.database} and {plan.broker}, seed {plan.seed}")
    print("faults: " + ", ".join(f"{kind} {outcome.faults[kind]}" for kind in plan.kinds or kinds_of(plan.database)))
    print(f"events: {found.owed} owed, {found.delivered} delivered, {found.repeated} deliveries repeated")
    median, slowest = found.recovery_median_s, max(found.recoveries_s, default=0.0)
    print(f"recoveries: {len(found.recoveries_s)}, the median {median:.2f} s, the slowest {slowest:.2f} s")
    red = {"wrong": found.wrong, "missed": sorted(outcome.missed), "missing": found.missing}
    for what, examples in (red | {"died by itself": outcome.died}).items():
        for example in examples[:SHOWN]:
            print(f"{what}: {example}")
    print(found.line, flush=True)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--broker", choices=BROKERS, default="redis")
    parser.add_argument("--faults", type=int, default=50, help="of each kind")
    parser.add_argument("--kinds", default="", help="only these kinds of fault, comma-separated")
    parser.add_argument("--workers", type=int, default=3, help="trees of two processes each")
    parser.add_argument("--grace-s", type=float, default=120.0, help="what has not ended by then is stuck")
    parser.add_argument("--impatient", action="store_true", help="leases of 4 s instead of the default")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="take out a safeguard: the run must fail")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
