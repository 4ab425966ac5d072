"""reuse=true: the tenant's own job of the very same file is the answer, as long as it is one of the active bundle."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import func, select

from shared import jobs, rehearsal, tenants
from shared.bundles import Bundle
from shared.db import Database, reading, transaction
from shared.models import TEST, Job
from shared.schemas import Failure
from shared.settings import Settings
from shared.storage import open_storage
from tests.api.conftest import FILM, Hand, Submit, both, client_of, later, serving
from tests.values import analysis


def again(client: httpx.Client, **fields: str) -> httpx.Response:
    return client.post("/v1/jobs", files={"file": FILM}, data={"reuse": "true", **fields})


def reused(answer: httpx.Response) -> str | None:
    """The id of the job that was there already; None when one was made."""
    found = answer.headers.get("Hilum-Reused") == "true"
    assert answer.status_code == (200 if found else 202), answer.text
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()["id"] if found else None


def count(database: Database) -> int:
    with reading(database) as session:
        return session.scalars(select(func.count()).select_from(Job)).one()


@both
def test_a_job_that_waits_is_the_answer(
    client: httpx.Client, submit: Submit, database: Database, settings: Settings
) -> None:
    job = submit(priority="urgent", external_id="first")
    answer = again(client, priority="stat", external_id="second")
    assert reused(answer) == job["id"]
    assert answer.json()["created_at"] == job["created_at"]
    assert answer.headers["ETag"] == '"1"'
    assert (answer.json()["priority"], answer.json()["external_id"]) == ("urgent", "first")
    assert (count(database), len(list((settings.home / "blobs").rglob("input")))) == (1, 1)


def test_without_the_wish_or_with_another_file_a_job_is_made(client: httpx.Client, submit: Submit) -> None:
    first = submit()["id"]
    assert submit(reuse="false")["id"] != first
    other = client.post("/v1/jobs", files={"file": FILM + b"\0"}, data={"reuse": "true"})
    assert reused(other) is None


def test_reuse_is_true_or_false(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, data={"reuse": "maybe"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body.reuse")


Step = Callable[[Hand, Database, str, str, Bundle], object]


def _running(hand: Hand, *_: object) -> None:
    hand.claim()


def _rejected(hand: Hand, _: object, __: str, ___: str, bundle: Bundle) -> None:
    hand.reject(bundle=bundle.identity)


def _succeeded(hand: Hand, _: object, __: str, ___: str, bundle: Bundle) -> None:
    hand.succeed(said=analysis(bundle=bundle.identity))


def _succeeded_by_another(hand: Hand, *_: object) -> None:
    hand.succeed()


def _rejected_by_another(hand: Hand, *_: object) -> None:
    hand.reject()


def _failed(hand: Hand, database: Database, *_: object) -> None:
    claim = hand.claim()
    with transaction(database) as session:
        jobs.fail(session, claim, Failure(code="worker_lost", detail=""))


def _canceled(_: Hand, database: Database, tenant_id: str, job_id: str, __: Bundle) -> None:
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, job_id)


def _to_be_canceled(hand: Hand, database: Database, tenant_id: str, job_id: str, bundle: Bundle) -> None:
    hand.claim()
    _canceled(hand, database, tenant_id, job_id, bundle)


@both
@pytest.mark.parametrize(
    ("step", "is_reused"),
    [
        (_running, True),
        (_succeeded, True),
        (_rejected, True),
        (_succeeded_by_another, False),
        (_rejected_by_another, False),
        (_failed, False),
        (_canceled, False),
        (_to_be_canceled, False),
    ],
)
def test_only_an_answer_of_the_active_bundle_is_reused(
    client: httpx.Client,
    submit: Submit,
    hand: Hand,
    database: Database,
    tenant_id: str,
    tiny: Bundle,
    step: Step,
    is_reused: bool,
) -> None:
    job_id = submit()["id"]
    step(hand, database, tenant_id, job_id, tiny)
    assert reused(again(client)) == (job_id if is_reused else None)
    assert count(database) == (1 if is_reused else 2)


def test_the_newest_of_several_is_taken(client: httpx.Client, submit: Submit) -> None:
    submit()
    newest = submit()["id"]
    assert reused(again(client)) == newest


@both
def test_explanations_that_are_asked_for_are_made(
    client: httpx.Client, hand: Hand, submit: Submit, tiny: Bundle
) -> None:
    job_id = submit()["id"]
    hand.succeed(said=analysis(bundle=tiny.identity))
    answer = again(client, explain="gradcam")
    assert reused(answer) == job_id
    assert answer.json()["explanations"]["gradcam"]["status"] == "queued"
    assert answer.headers["ETag"] == client.get(answer.headers["Location"]).headers["ETag"]
    hand.explain(job_id, gradcam_png=b"a picture")
    assert again(client, explain="gradcam").json()["explanations"]["gradcam"]["status"] == "succeeded"


def test_a_rejected_job_has_nothing_to_explain(client: httpx.Client, hand: Hand, submit: Submit, tiny: Bundle) -> None:
    submit()
    hand.reject(bundle=tiny.identity)
    answer = again(client, explain="gradcam")
    assert (answer.status_code, answer.json()["explanations"]) == (200, {})


def test_a_client_may_wait_for_the_job_it_shares(client: httpx.Client, hand: Hand, submit: Submit) -> None:
    job_id = submit()["id"]
    timer = later(0.3, hand.succeed)
    answer = client.post("/v1/jobs", files={"file": FILM}, data={"reuse": "true"}, headers={"Prefer": "wait=20"})
    timer.join()
    assert reused(answer) == job_id
    assert (answer.json()["status"], answer.headers["Preference-Applied"]) == ("succeeded", "wait=20")


def test_a_reused_job_is_replayed_as_such(client: httpx.Client, submit: Submit, hand: Hand) -> None:
    submit()
    form = {"files": {"file": FILM}, "data": {"reuse": "true"}, "headers": {"Idempotency-Key": "one"}}
    first = client.post("/v1/jobs", **form)  # type: ignore[arg-type]
    hand.succeed()
    second = client.post("/v1/jobs", **form)  # type: ignore[arg-type]
    assert second.headers["Idempotent-Replayed"] == second.headers["Hilum-Reused"] == "true"
    assert (second.status_code, second.content) == (200, first.content)


@both
def test_nothing_of_another_tenant_is_found(url: str, submit: Submit, database: Database) -> None:
    submit()
    with transaction(database) as session:
        stranger_key = tenants.create_key(session, tenants.create(session, "stranger").id)
    with client_of(url, stranger_key) as stranger:
        assert reused(again(stranger)) is None


@both
def test_live_and_test_jobs_never_answer_for_each_other(
    url: str, client: httpx.Client, submit: Submit, database: Database, tenant_id: str, settings: Settings
) -> None:
    with transaction(database) as session:
        rehearsing = tenants.issue_key(session, tenant_id, mode=TEST).key
    live = submit()["id"]
    with client_of(url, rehearsing) as tester:
        assert reused(again(tester)) is None
        assert reused(again(client)) == live
        rehearsal.play(database, open_storage(settings))
        answer = again(tester)
        assert reused(answer) not in (None, live)
        assert (answer.json()["status"], answer.json()["test"]) == ("succeeded", True)


def test_a_bundle_that_cannot_be_read_is_said(settings: Settings, key: str) -> None:
    without = settings.model_copy(update={"bundle": settings.home / "none"})
    with serving(without) as url, client_of(url, key) as client:
        answer = again(client)
        assert (answer.status_code, answer.json()["code"]) == (500, "bundle_error")
        assert client.get("/v1/jobs").json()["jobs"] == []
