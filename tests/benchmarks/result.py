"""What a benchmark says: one object per name in docs/benchmarks.json, with the machine and the commit it is true of."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.settings import ROOT

STORE = ROOT / "docs" / "benchmarks.json"
MEASURED = ("api", "shared", "worker", "migrations", "tests/benchmarks", "pyproject.toml")


@dataclass(frozen=True)
class About:
    """What a benchmark measures, in words; `at_most` or `at_least` bounds its ratio, where there is a bar.

    `missed` says why the published ratio misses the bar, as long as it does.
    """

    name: str
    unit: str
    means: str
    baseline: str
    at_most: float | None = None
    at_least: float | None = None
    missed: str = ""
    again: str = ""  # the command that measures it anew; empty: `make bench` with its name

    @property
    def bar(self) -> str:
        """The bar as people write it."""
        if self.at_most is not None:
            return f"ratio at most {self.at_most:g}"
        return f"ratio at least {self.at_least:.2f}" if self.at_least is not None else "none"

    def met(self, ratio: float) -> bool:
        """Whether a ratio keeps the bar."""
        return (self.at_most is None or ratio <= self.at_most) and (self.at_least is None or ratio >= self.at_least)


@dataclass(frozen=True)
class Result:
    """Medians over the rounds of one run, ours and the baseline's, and their ratio with its smallest and largest.

    `figures` are what else the run has counted or timed, `detail` the lines of a text that shows how.
    """

    name: str
    value: float
    unit: str
    baseline: float
    ratio: float
    spread: tuple[float, float]
    figures: Mapping[str, Any] | None = None
    detail: Sequence[str] = ()


def compared(about: About, ours: Sequence[float], baseline: Sequence[float]) -> Result:
    """The result of rounds that alternated: the ratio is taken round by round, because machines drift."""
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    return Result(
        name=about.name,
        value=_rounded(statistics.median(ours)),
        unit=about.unit,
        baseline=_rounded(statistics.median(baseline)),
        ratio=_rounded(statistics.median(ratios)),
        spread=(_rounded(min(ratios)), _rounded(max(ratios))),
    )


def alternate(*measures: Callable[[], float], rounds: int, warm_up: int = 1) -> list[list[float]]:
    """Take the measures in turn, round by round; the values of each, in order, those of the first rounds dropped."""
    kept = []
    for number in range(warm_up + rounds):
        values = [measure() for measure in measures]
        note = " (warm-up)" if number < warm_up else ""
        print(f"  round {number}: {', '.join(f'{value:.4g}' for value in values)}{note}", flush=True)
        kept += [values] if number >= warm_up else []
    return [list(values) for values in zip(*kept, strict=True)]


def record(result: Result, path: Path = STORE) -> None:
    """Write `result` into the store in place of what stood there under its name."""
    entries = {entry["name"]: entry for entry in stored(path)}
    said = asdict(result)
    more = {key: value for key in ("figures", "detail") if (value := said.pop(key))}
    said |= {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    entries[result.name] = said | more
    path.write_text(json.dumps([entries[name] for name in sorted(entries)], indent=2) + "\n", encoding="utf-8")


def stored(path: Path = STORE) -> list[dict[str, Any]]:
    """Every object of the store, by name."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def machine() -> str:
    """Processor, cores this process may use, and memory; never a host name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB memory"


def commit() -> str:
    """The commit that was measured; `+` behind it when what was measured had changes that are not in it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if named:
            return named[0]
    return platform.processor() or platform.machine()


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
