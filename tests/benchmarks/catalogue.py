"""Every benchmark by its name: a module with `ABOUT` and `run() -> Result`."""

from __future__ import annotations

from types import ModuleType

from tests.benchmarks import accept_cost, cold_start, pipeline_efficiency, worker_rss

BENCHMARKS: dict[str, ModuleType] = {
    module.ABOUT.name: module for module in (accept_cost, pipeline_efficiency, worker_rss, cold_start)
}
