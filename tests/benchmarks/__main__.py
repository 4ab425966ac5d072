"""`python -m tests.benchmarks [NAME ...]`: run them, write docs/benchmarks.json, make docs/benchmarks.md of it."""

from __future__ import annotations

import sys

from tests.benchmarks import report, result
from tests.benchmarks.catalogue import BENCHMARKS


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
        result.record(found)
        report.write()
        verdict = "" if about.bar == "none" else f"  ({about.bar}: {'kept' if about.met(found.ratio) else 'MISSED'})"
        print(
            f"  {found.value:g} {found.unit}, baseline {found.baseline:g}, ratio {found.ratio:g}{verdict}\n", flush=True
        )
        missed += [] if about.met(found.ratio) else [name]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
