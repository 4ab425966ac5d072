"""The published figures: every object is whole, and the page says what they say. Nothing is timed here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from shared.db import reading
from shared.models import Job
from shared.settings import ROOT
from tests.benchmarks import flat_cost, report, result
from tests.benchmarks.catalogue import ABOUTS
from tests.benchmarks.load import multipart
from tests.benchmarks.result import About, alternate, compared
from tests.conftest import postgres_database

KEYS = ["name", "value", "unit", "baseline", "ratio", "spread", "machine", "date", "commit"]


def test_every_published_result_is_whole():
    entries = result.stored()
    assert entries
    for entry in entries:
        assert [key for key in entry if key not in ("figures", "detail")] == KEYS
        assert entry["unit"] == ABOUTS[entry["name"]].unit
        assert all(entry[key] > 0 for key in ("value", "baseline", "ratio"))
        assert entry["spread"][0] <= entry["ratio"] <= entry["spread"][1]
        assert re.fullmatch(r".+, \d+ cores, \d+ GiB memory", entry["machine"])
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["date"])
        assert re.fullmatch(r"[0-9a-f]{12}\+?", entry["commit"])


def faults(entries: Iterable[dict[str, Any]], abouts: Mapping[str, About]) -> list[str]:
    """Each bar that is missed without a reason, and each reason without a miss."""
    found = []
    for entry in entries:
        about = abouts[entry["name"]]
        if about.met(entry["ratio"]) == bool(about.missed):
            what = "is excused but keeps its bar" if about.missed else "misses its bar"
            found.append(f"{about.name} {what}: {entry['ratio']}, {about.bar}")
    return found


def test_every_published_ratio_keeps_its_bar_or_says_why_not():
    assert faults(result.stored(), ABOUTS) == []


@pytest.mark.parametrize(
    ("ratio", "missed", "right"), [(0.5, "", True), (0.4, "", False), (0.4, "why", True), (0.5, "why", False)]
)
def test_a_miss_without_a_reason_and_a_reason_without_a_miss_are_faults(ratio: float, missed: str, right: bool):
    about = About("a_name", "s", "means", "baseline", at_least=0.5, missed=missed)
    assert (faults([{"name": "a_name", "ratio": ratio}], {"a_name": about}) == []) == right


def test_the_page_says_in_its_table_why_a_bar_is_missed():
    about = ABOUTS["submit_throughput"]
    entry = {**result.stored()[0], "name": about.name, "ratio": 0.3}
    row = next(line for line in report.page([entry]).splitlines() if line.startswith(f"| {about.name} |"))
    assert row.endswith(f"| {about.bar} | **no**: {about.missed} |")


def test_every_benchmark_was_published():
    assert [entry["name"] for entry in result.stored()] == sorted(ABOUTS)


def test_the_page_is_made_from_the_results():
    assert report.PAGE.read_text("utf-8") == report.page(result.stored())


def test_a_result_replaces_the_one_of_its_name(tmp_path: Path):
    store = tmp_path / "benchmarks.json"
    about = About("a_name", "s", "means", "baseline", at_most=3)
    for ours in (4.0, 5.0):
        result.record(compared(about, [ours], [2.0]), store)
    result.record(compared(About("another", "s", "means", "baseline"), [1.0], [2.0]), store)
    assert [(entry["name"], entry["ratio"]) for entry in result.stored(store)] == [("a_name", 2.5), ("another", 0.5)]


def test_rounds_alternate_and_the_first_is_dropped():
    order: list[str] = []
    values = iter([9.0, 9.0, 2.0, 4.0, 2.0, 6.0])

    def measured(name: str) -> float:
        order.append(name)
        return next(values)

    baseline, ours = alternate(lambda: measured("baseline"), lambda: measured("ours"), rounds=2)
    assert order == ["baseline", "ours"] * 3
    assert (baseline, ours) == ([2.0, 2.0], [4.0, 6.0])


@pytest.mark.parametrize(
    ("about", "met"), [({"at_most": 3.0}, [True, True, False]), ({"at_least": 3.0}, [False, True, True])]
)
def test_a_bar_counts_itself_as_kept(about: dict[str, float], met: list[bool]):
    bar = About("a_name", "s", "means", "baseline", **about)
    assert [bar.met(ratio) for ratio in (2.9, 3.0, 3.1)] == met


def test_the_load_is_a_form_with_one_file():
    body = multipart(b"\x89PNG")
    assert body.startswith(b"--hilum-benchmark\r\n")
    assert body.endswith(b"\r\n\r\n\x89PNG\r\n--hilum-benchmark--\r\n")


@pytest.mark.postgres
def test_flat_cost_shows_how_the_database_does_it(postgres_url: str, tmp_path: Path):
    """On few rows; which plan is taken on a million only a run can say."""
    with postgres_database(postgres_url) as url, flat_cost._filled(url, 200) as shop:
        plans = {about.name: flat_cost._plan(shop, act) for about, act in flat_cost._ACTS}
        with reading(shop.database) as session:
            states = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
    assert {status: number for status, number in states} == {"queued": 20, "succeeded": 180}, (
        "to look at a plan changes nothing"
    )
    assert plans["flat_cost"][1].startswith("Insert on jobs")
    assert plans["flat_cost_claim"][1].startswith("Update on jobs")
    store = tmp_path / "benchmarks.json"
    shown = replace(compared(flat_cost.CLAIM, [1.0], [1.0]), detail=plans["flat_cost_claim"])
    result.record(shown, store)
    fenced = "\n".join(["```text", *plans["flat_cost_claim"], "```"])
    assert f"\n\n{fenced}\n" in report.page(result.stored(store))


def test_make_runs_them():
    assert "-m tests.benchmarks $(B)" in (ROOT / "Makefile").read_text("utf-8")
