"""`python -m tests.benchmarks [NAME ...]`: run them, write docs/benchmarks.json, make docs/benchmarks.md of it."""

from __future__ import annotations

import sys

from tests.benchmarks import report, result
from tests.benchmarks.catalogue import ABOUTS, BENCHMARKS
from tests.benchmarks.result import Result


def main(names: list[str]) -> int:
    """Run the named benchmarks or all; 1 when one missed its bar, 2 for a name that does not exist."""
    if unknown := set(names) - set(BENCHMARKS):
        print(
            f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr
        )
        return 2
    missed = []
    for name in names or BENCHMARKS:
        about = BENCHMARKS[name].ABOUT
        print(f"{name}: {about.means}\n  baseline: {about.baseline}", flush=True)
        found = BENCHMARKS[name].run()
        for one in found if isinstance(found, list) else [found]:
            result.record(one)
            missed += [] if _told(one) else [one.name]
        report.write()
    return 1 if missed else 0


def _told(one: Result) -> bool:
    """Print a result, and say whether it keeps its bar."""
    about = ABOUTS[one.name]
    kept = about.met(one.ratio)
    verdict = "" if about.bar == "none" else f"  ({about.bar}: {'kept' if kept else 'MISSED'})"
    print(
        f"  {one.name} {one.value:g} {one.unit}, baseline {one.baseline:g}, ratio {one.ratio:g}{verdict}\n", flush=True
    )
    return kept


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
