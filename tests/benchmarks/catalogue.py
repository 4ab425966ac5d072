"""Every benchmark by its name: a module with `ABOUT` and `run`, which returns a Result or a list of them.

A module whose run also measures something else describes that in `ALSO`.
"""

from __future__ import annotations

from types import ModuleType

from tests.benchmarks import (
    accept_cost,
    cold_start,
    flat_cost,
    pipeline_efficiency,
    poll_throughput,
    scale_out,
    sse_listeners,
    submit_throughput,
    waiting_times,
    worker_rss,
)
from tests.benchmarks.result import About
from tests.chaos import about as chaos

_MODULES = (
    accept_cost,
    submit_throughput,
    poll_throughput,
    sse_listeners,
    flat_cost,
    scale_out,
    pipeline_efficiency,
    worker_rss,
    cold_start,
    waiting_times,
)
BENCHMARKS: dict[str, ModuleType] = {module.ABOUT.name: module for module in _MODULES}
# Chaos is no part of `make bench`: it takes an hour, and a command of its own.
ABOUTS: dict[str, About] = {
    about.name: about
    for module in (chaos, *BENCHMARKS.values())
    for about in (module.ABOUT, *getattr(module, "ALSO", ()))
}
