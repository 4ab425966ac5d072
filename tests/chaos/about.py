"""What `make chaos` says of itself on the page of the benchmarks."""

from __future__ import annotations

from tests.benchmarks.result import About

ABOUT = About(
    name="chaos",
    unit="s",
    means="Median time from the `kill -9` of a worker to the next claim of the row it held, in a run that breaks "
    "everything at random (docs/chaos.md says how), with the service's own default leases. The figures below are the "
    "run's: what was accepted and how it ended, and the events that were owed to two receivers and one stream.",
    baseline="the bar of 15 s",
    at_most=1.0,
    again="make chaos N=10000 SEED=1",
)
