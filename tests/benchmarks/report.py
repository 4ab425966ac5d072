"""docs/benchmarks.md, made from docs/benchmarks.json and from what each benchmark says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.settings import ROOT
from tests.benchmarks import result
from tests.benchmarks.catalogue import ABOUTS
from tests.benchmarks.result import About

PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Made by `make bench` from [benchmarks.json](benchmarks.json); edit neither by hand. `make bench B=name`
measures one anew.

Each ratio is ours over a baseline that was measured in the same run, in turn with ours: it says more than the
two figures, which are this machine's. Value and baseline are medians of the rounds; the ratio is the median of
the rounds' ratios, with the smallest and the largest behind it. `+` behind a commit means that it was measured
with changes that were not committed. A bar that is missed says why; a test fails on a miss without a reason, and
on a reason without a miss.
"""


def write(path: Path = PAGE) -> None:
    """Make the page of the stored results."""
    path.write_text(page(result.stored()), encoding="utf-8")


def page(entries: Sequence[dict[str, Any]]) -> str:
    """The page of these results, the catalogue's order first."""
    known = [entry for name in ABOUTS for entry in entries if entry["name"] == name]
    table = ["| benchmark | value | baseline | ratio | bar | kept |", "| --- | --- | --- | --- | --- | --- |"]
    table += [_row(entry, ABOUTS[entry["name"]]) for entry in known]
    sections = [_section(entry, ABOUTS[entry["name"]]) for entry in known]
    return "\n".join([HEAD, *table, "", *sections])


def _row(entry: dict[str, Any], about: About) -> str:
    low, high = entry["spread"]
    figures = f"{entry['value']:g} {entry['unit']} | {entry['baseline']:g} {entry['unit']}"
    ratio = f"{entry['ratio']:.3g} ({low:.3g} to {high:.3g})"
    return f"| {entry['name']} | {figures} | {ratio} | {about.bar} | {_kept(entry, about)} |"


def _kept(entry: dict[str, Any], about: About) -> str:
    if about.bar == "none":
        return "-"
    return "yes" if about.met(entry["ratio"]) else f"**no**: {about.missed}"


def _section(entry: dict[str, Any], about: About) -> str:
    lines = [
        f"## {entry['name']}",
        "",
        about.means,
        "",
        f"- Baseline: {about.baseline}.",
        f"- Bar: {about.bar}.",
        f"- Measured: {entry['date']} at commit {entry['commit']} on {entry['machine']}.",
        f"- Again: `{about.again or 'make bench B=' + entry['name'].removesuffix('_plain')}`",
        *_figures(entry.get("figures", {})),
        *_detail(entry.get("detail", ())),
        "",
    ]
    return "\n".join(lines)


def _detail(lines: Sequence[str]) -> list[str]:
    return ["", "```text", *lines, "```"] if lines else []


def _figures(figures: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """One line per figure; those of a group bear its name."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{name}{key} ")
        else:
            shown = f"{value:g}" if isinstance(value, float) else value
            yield f"- {name}{key}: {shown}"
