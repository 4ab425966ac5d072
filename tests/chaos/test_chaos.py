"""The short form of `make chaos`, and the proof that it can fail: each safeguard taken out turns it red."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.bundles import Bundle
from shared.settings import ROOT
from tests.chaos import verdict
from tests.chaos.load import Load, drawn, poisoned
from tests.chaos.plan import DATABASE_KINDS, DATABASES, IMPATIENT, Plan, kinds_of, schedule
from tests.chaos.process import POISON
from tests.chaos.run import RECEIVERS, Outcome, run
from tests.chaos.stream import _events
from tests.chaos.truth import STREAM, Truth
from worker.pipeline import decode

LINE = re.compile(
    r"accepted=\d+ finished=\d+ lost=\d+ duplicated=\d+ stuck=\d+ events_lost=\d+ recovery_median_s=\d+\.\d\d"
)
ON_POSTGRES = pytest.mark.postgres


def short(**given: Any) -> Plan:
    """A run of a minute: two workers, leases of four seconds."""
    values: dict[str, Any] = {"jobs": 60, "seed": 1, "faults": 1, "workers": 2, "settings": IMPATIENT, "grace_s": 90.0}
    return Plan(**{**values, **given})


def told(outcome: Outcome) -> str:
    """What a failed run is about."""
    found = outcome.verdict
    return "\n".join([found.line, *found.wrong, *found.missing, *outcome.died])


@pytest.fixture
def made(tiny: Bundle, compiled_home: Path) -> Any:
    """Make a run with the networks that this test session has compiled."""

    def make(plan: Plan) -> Outcome:
        return run(plan, bundle=tiny, cache=compiled_home / "cache")

    return make


@ON_POSTGRES
def test_nothing_is_lost_on_postgresql(made: Any) -> None:
    kinds = ("kill_child", "kill_tree", "broker_flush", "database_restart", "cut_connections", "api_restart")
    plan = short(jobs=40, kinds=(*kinds, "sweeper_kill", "client_cut", "receiver_error"))
    outcome = made(plan)
    assert outcome.verdict.sound, told(outcome)
    assert outcome.verdict.accepted == outcome.verdict.finished == plan.jobs
    assert outcome.faults == Counter(schedule(plan))
    assert outcome.verdict.recoveries_s
    assert outcome.verdict.owed > plan.jobs * (len(RECEIVERS) + 1)


def test_nothing_is_lost_on_sqlite(made: Any) -> None:
    kinds = ("kill_tree", "freeze_worker", "poison", "broker_wipe", "database_lock", "api_restart", "receiver_drop")
    plan = short(jobs=35, database="sqlite", kinds=kinds)
    outcome = made(plan)
    assert outcome.verdict.sound, told(outcome)
    assert outcome.verdict.accepted == outcome.verdict.finished == plan.jobs
    assert outcome.faults == Counter(schedule(plan))


def test_a_fault_that_met_nobody_at_work_lets_uploads_of_the_reserve_begin() -> None:
    """Else the last faults of a run may come when all work is done, and meet nothing however often they are tried."""
    truth = Truth()
    load = Load(short(jobs=40, kinds=("kill_tree",)), "http://127.0.0.1:9", "", truth)
    load.allow(40)
    begun = [order.number for order in iter(lambda: load._take() if load._next < 38 else None, None)]
    assert begun == list(range(38))
    waiting = threading.Thread(target=lambda: begun.append(load._take().number))  # type: ignore[union-attr]
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    load.more()
    waiting.join(30)
    assert begun[38:] == [38]


# ---------------------------------------------------------------- the test of the test


@ON_POSTGRES
def test_without_compare_and_set_the_run_is_red(made: Any) -> None:
    outcome = made(short(jobs=30, faults=0, sabotage="compare-and-set", grace_s=20.0))
    assert not outcome.kept
    assert outcome.verdict.duplicated > 0, told(outcome)


@ON_POSTGRES
def test_without_fencing_the_run_is_red(made: Any) -> None:
    outcome = made(short(jobs=40, faults=3, workers=3, kinds=("freeze_worker",), sabotage="fencing", grace_s=20.0))
    assert not outcome.kept
    assert outcome.verdict.duplicated > 0, told(outcome)


@ON_POSTGRES
def test_without_a_sweeper_the_run_is_red(made: Any) -> None:
    outcome = made(short(jobs=30, faults=2, kinds=("kill_child",), sabotage="sweeper", grace_s=10.0))
    assert not outcome.kept
    assert outcome.verdict.stuck > 0, told(outcome)


# ---------------------------------------------------------------- the verdict itself


PLAIN, EXPLAINED = 1, 4  # seeds of which the first uploads want no explanation, or one; none is canceled


def job(job_id: str, status: str = "succeeded", **columns: Any) -> dict[str, Any]:
    key = drawn(short(seed=PLAIN), "abcd".index(job_id[-1])).key
    return {"id": job_id, "status": status, "explanations": {}, "external_id": key, **columns}


def seen(truth: Truth, job_id: str, event_id: str = "", name: str = "job.succeeded") -> None:
    for source in (STREAM, *RECEIVERS):
        event = {"id": event_id or f"evt_{job_id}", "type": name, "data": {"job": job_id}}
        truth.event(source, event)


@pytest.fixture
def truth() -> Truth:
    """Two uploads that ended well and were heard of everywhere."""
    found = Truth()
    for number, job_id in enumerate(("job_a", "job_b")):
        found.accept(number, job_id)
        seen(found, job_id)
    return found


def judged(truth: Truth, *jobs: dict[str, Any]) -> verdict.Verdict:
    plan = short(seed=PLAIN, jobs=len(truth.accepted))
    return verdict.judge(plan, truth, {one["id"]: one for one in jobs}, RECEIVERS, [1.0, 3.0, 2.0], set())


def test_a_clean_run_keeps_the_bar_and_says_so_in_one_line(truth: Truth) -> None:
    found = judged(truth, job("job_a"), job("job_b"))
    assert found.kept
    assert found.line == ("accepted=2 finished=2 lost=0 duplicated=0 stuck=0 events_lost=0 recovery_median_s=2.00")
    assert LINE.fullmatch(found.line)
    assert (found.owed, found.delivered, found.repeated) == (6, 6, 0)


def test_a_job_that_is_not_there_is_lost(truth: Truth) -> None:
    found = judged(truth, job("job_a"))
    assert (found.lost, found.finished, found.kept) == (1, 1, False)


def test_a_job_that_has_not_ended_is_stuck_and_so_is_one_whose_picture_is_not_drawn(truth: Truth) -> None:
    drawing = {"gradcam": {"status": "queued"}}
    found = judged(truth, job("job_a", "running"), job("job_b", explanations=drawing))
    assert (found.stuck, found.finished, found.kept) == (2, 0, False)


def test_a_second_end_a_second_answer_and_a_second_job_are_duplicates(truth: Truth) -> None:
    seen(truth, "job_a", "evt_again")
    truth.answer(job("job_b", result={"top_class": "normal"}))
    truth.accept(2, "job_c")
    truth.accept(2, "job_d")
    seen(truth, "job_c")
    found = judged(truth, job("job_a"), job("job_b", result={"top_class": "covid19"}), job("job_c"))
    assert (found.duplicated, found.kept) == (3, False)


def test_the_same_event_twice_is_a_repeat_and_no_duplicate(truth: Truth) -> None:
    seen(truth, "job_a")
    found = judged(truth, job("job_a"), job("job_b"))
    assert (found.duplicated, found.repeated, found.kept) == (0, len(RECEIVERS), True)


def test_an_event_that_one_of_them_never_got_is_lost(truth: Truth) -> None:
    truth.accept(2, "job_c")
    event = {"id": "evt_c", "type": "job.succeeded", "data": {"job": "job_c"}}
    truth.event(STREAM, event)
    truth.event(RECEIVERS[0], event)
    found = judged(truth, job("job_a"), job("job_b"), job("job_c"))
    assert (found.events_lost, found.kept) == (1, False)


def test_an_upload_that_nobody_accepted_and_a_job_that_nobody_uploaded_turn_it_red(truth: Truth) -> None:
    few = verdict.judge(short(seed=PLAIN, jobs=3), truth, {}, RECEIVERS, [1.0], set())
    assert (few.asked, few.accepted, few.kept) == (3, 2, False)
    other = {**job("job_c"), "external_id": "another"}
    seen(truth, "job_c")
    assert judged(truth, job("job_a"), job("job_b"), other).wrong == ("job_c: of no upload",)


def test_a_key_that_became_two_jobs_is_a_duplicate_although_no_client_saw_both(truth: Truth) -> None:
    seen(truth, "job_c")
    again = {**job("job_c"), "external_id": job("job_a")["external_id"]}
    found = judged(truth, job("job_a"), job("job_b"), again)
    assert (found.duplicated, found.kept) == (1, False)


@pytest.mark.parametrize("explanations", [{}, {"gradcam": {"status": "canceled"}}, {"gradcam": {"status": "failed"}}])
def test_an_explanation_that_was_asked_for_and_not_made_is_wrong(explanations: dict[str, Any]) -> None:
    plan, found = short(jobs=1, seed=EXPLAINED), Truth()
    order = drawn(plan, 0)
    assert order.explain
    assert not order.cancel
    found.accept(0, "job_a")
    one = {"id": "job_a", "status": "succeeded", "external_id": order.key}
    for status in ({"gradcam": {"status": "succeeded"}}, explanations):
        judgement = verdict.judge(plan, found, {"job_a": {**one, "explanations": status}}, RECEIVERS, [], set())
        assert bool(judgement.wrong) == (status is explanations)


def test_a_run_that_did_not_make_every_fault_does_not_count() -> None:
    clean = verdict.Verdict(1, 1, 1, 0, 0, 0, 3, 3, 0, (1.0,))
    made = Counter(kill_child=2)
    assert Outcome(clean, made, Counter(), (), 1.0).kept
    assert not Outcome(clean, made, Counter(poison=1), (), 1.0).kept
    assert not Outcome(replace(clean, recoveries_s=()), made, Counter(), (), 1.0).kept


def test_a_good_film_that_fails_is_wrong(truth: Truth) -> None:
    seen(truth, "job_b", "evt_b", "job.failed")
    found = judged(truth, job("job_a"), job("job_b", "failed", error={"code": "internal_error"}))
    assert len(found.wrong) == 1
    assert not found.kept


def test_the_reader_of_the_stream_goes_on_where_it_was_told_to_although_nothing_has_happened_yet() -> None:
    lines = ["id: evt_1", "retry: 1000", "", ": still here", "", "id: evt_2", "data: {}", ""]
    assert list(_events(iter(lines))) == [("evt_1", ""), ("evt_1", ""), ("evt_2", "{}")]


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("database", DATABASES)
def test_the_seed_decides_everything(database: str) -> None:
    plan = Plan(jobs=50, seed=3, database=database, faults=4)
    assert schedule(plan) == schedule(plan) != schedule(Plan(jobs=50, seed=4, database=database, faults=4))
    assert Counter(schedule(plan)) == dict.fromkeys(kinds_of(database), 4)
    assert set(DATABASE_KINDS[database]) < set(kinds_of(database))
    orders = [drawn(plan, number) for number in range(50)]
    assert orders == [drawn(plan, number) for number in range(50)]
    assert len({order.key for order in orders}) == 50


def test_a_poisoned_film_is_the_same_picture() -> None:
    from tests.builders import chest, png

    film = png(chest(1))
    assert POISON in poisoned(film)
    assert (decode.decode(poisoned(film)).pixels == decode.decode(film).pixels).all()


def test_make_runs_it() -> None:
    assert "-m tests.chaos --jobs $(N) --seed $(SEED)" in (ROOT / "Makefile").read_text("utf-8")
