"""Every benchmark by its name: a module with `ABOUT` and `run`, which returns a Result or a list of them.

A module whose run also measures something else describes that in `ALSO`.
"""

from __future__ import annotations

from types import ModuleType

from tests.benchmarks import accept_cost, cold_start, pipeline_efficiency, waiting_times, worker_rss
from tests.benchmarks.result import About

BENCHMARKS: dict[str, ModuleType] = {
    module.ABOUT.name: module for module in (accept_cost, pipeline_efficiency, worker_rss, cold_start, waiting_times)
}
ABOUTS: dict[str, About] = {
    about.name: about for module in BENCHMARKS.values() for about in (module.ABOUT, *getattr(module, "ALSO", ()))
}
