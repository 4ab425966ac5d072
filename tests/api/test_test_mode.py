"""Test keys: every state, reason and event can be reached by name, and no worker ever sees the jobs."""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import func, insert, select, update

from api import chores
from api.chores import Chores
from shared import backlog, canned, destinations, jobs, ledger, purge, rehearsal, tenants, workers
from shared.db import Database, clock, reading, transaction
from shared.deeds import HILUM
from shared.errors import StorageFull
from shared.models import LIVE, TEST, Delivery, Event, Explanation, Job
from shared.schemas import TERMINAL
from shared.settings import ROOT, Settings
from shared.storage import LocalStorage, Storage, open_storage
from tests.api.conftest import FILM, Hand, both, client_of
from tests.servers import until
from tests.test_docs import codes

Play = Callable[[], int]
Rehearse = Callable[..., dict[str, Any]]


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


@pytest.fixture
def play(database: Database, storage: Storage) -> Play:
    """One round of the sweeper's rehearsals; how many rows it changed."""
    return lambda: rehearsal.play(database, storage)


@pytest.fixture
def tester(url: str, database: Database, tenant_id: str) -> Iterator[httpx.Client]:
    """A client with a test key of the tenant."""
    with transaction(database) as session:
        key = tenants.issue_key(session, tenant_id, mode=TEST).key
    with client_of(url, key) as found:
        yield found


@pytest.fixture
def rehearse(tester: httpx.Client) -> Rehearse:
    """Submit a film that nobody reads; the job."""

    def one(external_id: str | None = None, **fields: str) -> dict[str, Any]:
        data = {**fields, **({"external_id": external_id} if external_id else {})}
        answer = tester.post("/v1/jobs", files={"file": FILM}, data=data)
        assert answer.status_code == 202, answer.text
        return answer.json()

    return one


def told(database: Database, job_id: str) -> list[tuple[str, str | None, str]]:
    """Type, code and mode of the events of a job, in order."""
    with reading(database) as session:
        found = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id))
        return [(event.type, event.payload.get("code"), event.mode) for event in found]


def documented(heading: str) -> set[str]:
    """The codes in the table under a heading of docs/http.md."""
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    section = page.split(f"### {heading}\n")[1].split("\n#")[0]
    return set(
        re.findall(r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in section.splitlines() if "|" in line))
    )


# ---------------------------------------------------------------- every end


@both
def test_a_test_job_succeeds_unless_it_is_told_otherwise(
    rehearse: Rehearse, play: Play, tester: httpx.Client, database: Database
) -> None:
    made = rehearse("study-4711", explain="gradcam")
    assert made["test"] is True
    assert play() == 2  # the job and its explanation
    job = tester.get(f"/v1/jobs/{made['id']}").json()
    assert (job["status"], job["test"], job["attempt"]) == ("succeeded", True, 1)
    assert job["result"]["uncertain"] is False
    assert "no film was read" in job["result"]["disclaimer"]
    assert job["result"]["bundle"].startswith("rehearsal@")
    assert job["explanations"]["gradcam"]["status"] == "succeeded"
    for name, path in job["artifacts"].items():
        assert Image.open(io.BytesIO(tester.get(path).content)).size == (64, 64), name
    assert set(job["artifacts"]) == {"input.png", "lungs.png", "gradcam.png", "gradcam.jpg"}
    assert told(database, made["id"]) == [("job.succeeded", None, TEST), ("explanation.succeeded", None, TEST)]
    assert play() == 0


@both
def test_every_name_comes_to_its_end(rehearse: Rehearse, play: Play, tester: httpx.Client, database: Database) -> None:
    made = {name: rehearse(name, explain="gradcam")["id"] for name in rehearsal.SCRIPTS}
    assert play()
    while play():
        pass
    ends = {name: tester.get(f"/v1/jobs/{job_id}").json() for name, job_id in made.items()}
    for name, job in ends.items():
        what, _, code = name.removeprefix("test_").partition("_")
        if what in ("rejected", "failed"):
            said = job["reason"] if what == "rejected" else job["error"]
            assert (job["status"], said["code"]) == (what, code)
            assert told(database, job["id"]) == [(f"job.{what}", code, TEST)]
            assert job["explanations"]["gradcam"]["status"] == "canceled"
        elif what == "explanation":
            state, _, code = code.partition("_")
            explained = job["explanations"]["gradcam"]
            assert (job["status"], explained["status"]) == ("succeeded", state)
            assert not code or explained["error"]["code"] == code
            assert told(database, job["id"])[1:] == ([("explanation.failed", code, TEST)] if code else [])
    assert [ends[f"test_{name}"]["status"] for name in ("queued", "running", "canceled")] == [
        "queued",
        "running",
        "canceled",
    ]
    assert ends["test_running"]["stage"] == "networks"
    assert ends["test_uncertain"]["result"]["uncertain"] is True
    assert set(canned.UNCERTAIN.uncertain_because) <= {"low_confidence", "small_margin", "networks_disagree"}
    assert len(ends["test_uncertain"]["result"]["prediction_set"]) == 2


def test_every_code_that_a_job_can_end_with_can_be_rehearsed() -> None:
    assert set(canned.REASONS) == documented("Codes of a rejected job")
    both_kinds = set(canned.FAILURES) | set(canned.EXPLANATION_FAILURES)
    assert both_kinds == documented("Codes of a failed job")
    assert len(canned.REASONS) > 15
    assert set(canned.REASONS) <= set(codes()) | {"truncated"}  # whose code the decoder computes
    assert canned.REASONS["too_small"].value is not None


@pytest.mark.parametrize(
    "typo", ["test_", "test_rejected", "test_rejected_ugly", "test_suceeded", "night/test_failed.png", "test_failed_x"]
)
def test_a_typo_is_no_success(tester: httpx.Client, typo: str, client: httpx.Client) -> None:
    answer = tester.post("/v1/jobs", files={"file": FILM}, data={"external_id": typo})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_rehearsal")
    assert "test_rejected_<code>" in answer.json()["detail"]
    assert client.post("/v1/jobs", files={"file": FILM}, data={"external_id": typo}).status_code == 202


def test_each_file_of_a_batch_may_name_its_own_end(
    tester: httpx.Client, play: Play, database: Database, client: httpx.Client
) -> None:
    names = ("test_rejected_no_lungs.png", "test_failed_internal_error.png", "plain.png")
    files = [("file", (name, FILM)) for name in names]
    answer = tester.post("/v1/batches", files=files, data={"external_id": "night"})
    assert answer.status_code == 202, answer.text
    while play():
        pass
    batch = tester.get(f"/v1/batches/{answer.json()['id']}").json()
    assert {state: count for state, count in batch["counts"].items() if count} == {
        "rejected": 1,
        "failed": 1,
        "succeeded": 1,
    }
    assert batch["test"] is True
    with reading(database) as session:
        assert session.scalars(select(Event.mode).where(Event.type == "batch.finished")).all() == [TEST]


# ---------------------------------------------------------------- what stays, and canceling it


@both
def test_what_stays_can_be_canceled(rehearse: Rehearse, play: Play, tester: httpx.Client, database: Database) -> None:
    queued, running = rehearse("test_queued")["id"], rehearse("test_running")["id"]
    assert play() == 1
    assert play() == 0
    assert tester.post(f"/v1/jobs/{queued}/cancel").json()["status"] == "canceled"
    assert tester.post(f"/v1/jobs/{running}/cancel").json()["status"] == "running"
    assert play() == 1
    for job_id in (queued, running):
        assert tester.get(f"/v1/jobs/{job_id}").json()["status"] == "canceled"
        assert told(database, job_id) == [("job.canceled", None, TEST)]


@both
def test_an_explanation_that_stays_can_be_canceled(rehearse: Rehearse, play: Play, tester: httpx.Client) -> None:
    ids = [rehearse(f"test_explanation_{state}", explain="gradcam")["id"] for state in ("queued", "running")]
    while play():
        pass
    for job_id in ids:
        assert tester.delete(f"/v1/jobs/{job_id}/explanations/gradcam").status_code == 200
    play()
    for job_id in ids:
        assert tester.get(f"/v1/jobs/{job_id}/explanations/gradcam").json()["status"] == "canceled"


def test_an_explanation_can_be_asked_for_later(rehearse: Rehearse, play: Play, tester: httpx.Client) -> None:
    job_id = rehearse()["id"]
    assert play() == 1
    assert tester.post(f"/v1/jobs/{job_id}/explanations", json={"method": "gradcam"}).status_code == 202
    assert play() == 1
    assert tester.get(f"/v1/jobs/{job_id}").json()["explanations"]["gradcam"]["status"] == "succeeded"


@both
def test_what_stays_for_a_day_is_canceled(rehearse: Rehearse, play: Play, database: Database) -> None:
    ids = [rehearse(name)["id"] for name in ("test_queued", "test_running")]
    explained = rehearse("test_explanation_queued", explain="gradcam")["id"]
    while play():
        pass
    with transaction(database) as session:
        past = clock(session) - timedelta(hours=25)
        for table in (Job, Explanation):
            session.execute(update(table).values(created_at=past))
    assert play() == 3
    with reading(database) as session:
        states = [session.get_one(Job, job_id).status for job_id in (*ids, explained)]
        assert states == ["canceled", "canceled", "succeeded"]
        assert session.scalars(select(Explanation.status)).one() == "canceled"


def test_those_that_stay_hold_up_nobody(
    rehearse: Rehearse, play: Play, monkeypatch: pytest.MonkeyPatch, tester: httpx.Client
) -> None:
    monkeypatch.setattr(rehearsal, "AT_ONCE", 2)
    for name in ("test_queued", "a/test_queued", "test_queued.png", "a/b/test_queued.png"):
        rehearse(name)
    last = rehearse("study-1")["id"]
    assert play() == 1
    assert tester.get(f"/v1/jobs/{last}").json()["status"] == "succeeded"


@both
def test_what_only_looks_like_a_name_that_stays_is_played(
    rehearse: Rehearse, play: Play, tester: httpx.Client, database: Database
) -> None:
    names = [
        look.replace("queued", what)
        for look in ("test_queued.d/b.png", "a/test_queued.d/b", "Test_Queued.png", "a/TEST_QUEUED", "x.test_queued.y")
        for what in ("queued", "explanation_queued", "QUEUED", "EXPLANATION_QUEUED")
    ]
    made = [rehearse(name, explain="gradcam")["id"] for name in names]
    while play():
        pass
    for job_id in made:
        job = tester.get(f"/v1/jobs/{job_id}").json()
        assert (job["status"], job["explanations"]["gradcam"]["status"]) == ("succeeded", "succeeded"), job
    assert play() == 0


@both
def test_the_database_reads_a_name_as_the_sweeper_does(
    database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one of the two waits for ever for what the other takes for something else."""
    monkeypatch.setattr(rehearsal, "AT_ONCE", 10_000)
    parts = ("test_queued", "Test_Queued", "ä", ".", "/", "%", " ")
    names = sorted({"".join(some) for count in range(5) for some in itertools.product(parts, repeat=count)})
    columns = {"tenant_id": tenant_id, "mode": TEST, "status": "queued", "priority": "routine", "blob_key": "b"}
    columns |= {"media_type": "image/png", "size": 1, "sha256": "c", "free": {}}
    with transaction(database) as session:
        now = clock(session)
        rows = [
            {"id": f"job_{i}", "external_id": name, "created_at": now, "due_at": now, **columns}
            for i, name in enumerate(names)
        ]
        session.execute(insert(Job), rows)
    with reading(database) as session:
        chosen = {row.external_id for row in session.execute(rehearsal._waiting_jobs())}
    assert chosen == {name for name in names if rehearsal._script(name).job is not None}
    assert len(names) - len(chosen) > 100


# ---------------------------------------------------------------- nothing of it is live


@both
def test_no_worker_sees_a_test_job(
    rehearse: Rehearse, play: Play, database: Database, settings: Settings, tester: httpx.Client, rung: list[str]
) -> None:
    job_id = rehearse(explain="gradcam")["id"]

    def claimed() -> int:
        with transaction(database) as session:
            return sum(len(ledger.claim_next(session, table, 5, lease_s=60)) for table in (Job, Explanation))

    assert claimed() == 0
    with transaction(database) as session:
        script = ledger.claim_chosen(session, Job, select(Job.id), lease_s=0.001)
        jobs.finish(session, script[0], canned.CERTAIN, [])
    assert claimed() == 0
    tester.post(f"/v1/jobs/{job_id}/explanations", json={"method": "gradcam"})
    assert claimed() == 0
    running = rehearse("test_running")["id"]
    play()
    with transaction(database) as session:
        session.execute(update(Job).values(lease_until=clock(session) - timedelta(seconds=1)))
        jobs.expire(session, settings)
    assert claimed() == 0  # a row that comes back from an expired lease does not become a live one
    assert tester.get(f"/v1/jobs/{running}").json()["status"] == "queued"
    assert [bell for bell in rung if bell == "explain"] == []


def test_test_jobs_are_no_backlog(rehearse: Rehearse, play: Play, database: Database, client: httpx.Client) -> None:
    rehearse("test_queued"), rehearse("test_running")
    assert play() == 1
    live = client.post("/v1/jobs", files={"file": FILM}).json()["id"]
    with transaction(database) as session:
        workers.beat(session, "w", queues=["analyze"])
        session.execute(update(Job).where(Job.mode == TEST).values(created_at=clock(session) - timedelta(hours=1)))
        measured = backlog.measure(session)
        assert backlog.owed(session) == {"analyze": backlog.Owed(live, 1)}  # what is played keeps no worker busy
    assert max(measured.oldest_s.values()) < 600
    assert sum(measured.unfinished.values()) == 1
    assert measured.overdue == 0


def test_a_live_job_is_never_played(
    client: httpx.Client, play: Play, hand: Hand, rehearse: Rehearse, database: Database
) -> None:
    live = client.post("/v1/jobs", files={"file": FILM}, data={"external_id": "test_succeeded", "explain": "gradcam"})
    assert live.json()["test"] is False
    assert play() == 0
    assert hand.succeed() == live.json()["id"]
    assert play() == 0
    with reading(database) as session:
        assert session.scalars(select(Explanation.status)).one() == "queued"
        assert session.scalars(select(Event.mode)).all() == [LIVE]


def test_webhooks_are_owed_the_events_of_rehearsals(
    rehearse: Rehearse, play: Play, database: Database, tenant_id: str, rung: list[str]
) -> None:
    with transaction(database) as session:
        told = {"url": "https://192.0.2.1/hook", "events": ["job.rejected"], "description": "", "by": HILUM}
        destinations.create(session, tenant_id, **told)
    rehearse("test_rejected_inverted"), rehearse("test_succeeded")
    assert play() == 2
    with reading(database) as session:
        owed = session.scalars(select(Event.type).join(Delivery, Delivery.event_id == Event.id)).all()
    assert owed == ["job.rejected"]
    assert "deliver" in rung


def test_a_test_key_purges_test_jobs_only(
    tester: httpx.Client, client: httpx.Client, play: Play, rehearse: Rehearse, hand: Hand
) -> None:
    live, made = client.post("/v1/jobs", files={"file": FILM}).json()["id"], rehearse()["id"]
    play(), hand.succeed()
    assert tester.delete(f"/v1/jobs/{live}").status_code == 403
    assert tester.delete(f"/v1/jobs/{made}").status_code == 204
    assert client.get(f"/v1/jobs/{live}").status_code == 200


def test_waiting_and_idempotency_are_the_real_ones(tester: httpx.Client, play: Play) -> None:
    stop, keyed = threading.Event(), {"Idempotency-Key": "one", "Prefer": "wait=20"}
    player = threading.Thread(target=lambda: [play() for _ in iter(lambda: stop.wait(0.05), True)])
    player.start()
    try:
        first, again = (
            tester.post("/v1/jobs", files={"file": FILM}, data={"external_id": "test_rejected_lateral"}, headers=keyed)
            for _ in range(2)
        )
    finally:
        stop.set()
        player.join()
    assert (first.status_code, first.json()["status"]) == (201, "rejected")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == first.content


# ---------------------------------------------------------------- the sweeper


def test_a_full_store_leaves_the_job_for_later(
    rehearse: Rehearse, play: Play, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearse(explain="gradcam")

    def full(*_: object) -> None:
        raise StorageFull()

    with monkeypatch.context() as broken:
        broken.setattr(LocalStorage, "put", full)
        with pytest.raises(StorageFull):
            play()
    with reading(database) as session:
        assert session.scalars(select(Job.status)).one() == "queued"
    assert play() == 2


def test_two_who_play_at_once_end_each_job_once(rehearse: Rehearse, play: Play, database: Database) -> None:
    for _ in range(6):
        rehearse()
    players = [threading.Thread(target=play) for _ in range(3)]
    for player in players:
        player.start()
    for player in players:
        player.join()
    with reading(database) as session:
        assert session.scalars(select(func.count()).select_from(Event)).one() == 6
        assert {job.status for job in session.scalars(select(Job))} <= {status.value for status in TERMINAL}


def test_the_chores_survive_what_goes_wrong(
    rehearse: Rehearse, database: Database, storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, stopping, broken = rehearse()["id"], threading.Event(), threading.Event()

    def fall(*_: object) -> None:
        broken.set()
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(purge, "retire", fall)
    quick = settings.model_copy(update={"sweep_every_s": 0.02})
    thread = threading.Thread(target=chores.work, args=(Chores(database, storage, quick), stopping, broken.is_set))
    thread.start()
    try:
        with reading(database) as session:
            assert session.get_one(Job, job_id).status == "queued"  # a sweeper that does not lead does nothing
        broken.set()

        def played() -> bool:
            with reading(database) as session:
                return session.get_one(Job, job_id).status == "succeeded"

        until(played, within_s=20)
        assert thread.is_alive()
    finally:
        stopping.set()
        thread.join(20)
