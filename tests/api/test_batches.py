"""Batches: all of their jobs are durable or nothing is left, and they finish with exactly one event."""

from __future__ import annotations

import io
import os
import resource
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import Engine, event, func, select
from sqlalchemy.exc import OperationalError

from api import batching
from shared import batches, jobs, ledger, rehearsal, tenants
from shared.db import Database, reading, transaction
from shared.errors import Conflict
from shared.models import TEST, Batch, Deed, Event, Job
from shared.schemas import Failure
from shared.settings import Settings
from shared.storage import open_storage
from tests import builders
from tests.api.conftest import FILM, Hand, both, client_of, serving
from tests.values import analysis

OTHER = builders.png(builders.chest(4, (160, 144)))
ENTRIES = {"ward/first.png": FILM, "ward/second.png": OTHER}
CODES = {"empty.png": "empty_file", "notes.txt": "unsupported_type", "inner.zip": "nested_archive"}


def zipped(entries: dict[str, bytes], *more: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a name comes twice
        for name, data in (*entries.items(), *more):
            archive.writestr(name, data)
    return buffer.getvalue()


def sent(client: httpx.Client, *files: tuple[str, bytes], headers: dict[str, str] | None = None, **fields: str):
    return client.post("/v1/batches", files=[("file", file) for file in files], data=fields, headers=headers)


def accepted(client: httpx.Client, *files: tuple[str, bytes], **fields: str) -> dict[str, Any]:
    answer = sent(client, *files, **fields)
    assert answer.status_code == 202, answer.text
    return answer.json()


def refused(client: httpx.Client, *files: tuple[str, bytes], **fields: str) -> dict[str, Any]:
    answer = sent(client, *files, **fields)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def blobs(settings: Settings) -> list[Path]:
    return [path for path in (settings.home / "blobs").rglob("*") if path.is_file()]


def rows(database: Database) -> tuple[int, int]:
    with reading(database) as session:
        return session.scalar(select(func.count(Batch.id))) or 0, session.scalar(select(func.count(Job.id))) or 0


def events(database: Database, type: str) -> list[Event]:
    with reading(database) as session:
        return list(session.scalars(select(Event).where(Event.type == type)))


# ---------------------------------------------------------------- submitting


@both
def test_many_files_become_one_batch(client: httpx.Client, settings: Settings, database: Database):
    fields = {"external_id": "night", "priority": "urgent", "explain": "gradcam", "metadata": '{"site": "north"}'}
    answer = sent(client, ("a.png", FILM), ("b.png", OTHER), **fields)
    made = answer.json()
    assert answer.headers["Location"] == f"/v1/batches/{made['id']}"
    assert (made["total"], made["counts"]["queued"], made["finished_at"]) == (2, 2, None)
    assert (made["external_id"], made["metadata"], made["test"]) == ("night", {"site": "north"}, False)
    assert ([file["name"] for file in made["files"]], made["skipped"]) == (["a.png", "b.png"], [])
    listed = client.get(made["jobs"]).json()["jobs"]
    assert {job["external_id"] for job in listed} == {"night/a.png", "night/b.png"}
    assert {job["id"] for job in listed} == {file["job"] for file in made["files"]}
    assert {(job["priority"], job["batch"]) for job in listed} == {("urgent", made["id"])}
    assert all(job["explanations"]["gradcam"]["status"] == "queued" for job in listed)
    assert sorted(path.read_bytes() for path in blobs(settings)) == sorted([FILM, OTHER])
    with reading(database) as session:
        assert session.scalars(select(Deed.subject).where(Deed.action == "batch.submitted")).all() == [made["id"]]
    del made["files"], made["skipped"]
    assert client.get(answer.headers["Location"]).json() == made


@both
def test_a_zip_becomes_one_batch(client: httpx.Client, settings: Settings):
    data = zipped({"ward/": b"", **ENTRIES, "__MACOSX/ward/._first.png": b"x", "DICOMDIR": b"x"})
    made = accepted(client, ("films.zip", data))
    assert [file["name"] for file in made["files"]] == list(ENTRIES)
    assert {skip["name"]: skip["reason"] for skip in made["skipped"]} == {
        "ward/": "directory",
        "__MACOSX/ward/._first.png": "hidden",
        "DICOMDIR": "dicomdir",
    }
    for file in made["files"]:
        job = client.get(f"/v1/jobs/{file['job']}").json()
        assert job["external_id"] == file["name"]
        assert job["input"]["bytes"] == len(ENTRIES[file["name"]])
    assert sorted(path.read_bytes() for path in blobs(settings)) == sorted(ENTRIES.values())


def test_an_entry_that_comes_twice_is_one_job(client: httpx.Client):
    made = accepted(client, ("films.zip", zipped({"a.png": FILM}, ("a.png", FILM), ("b.png", FILM))))
    assert [file["name"] for file in made["files"]] == ["a.png", "b.png"]
    assert made["skipped"] == [{"name": "a.png", "reason": "duplicate"}]


def test_two_entries_of_one_name_must_be_the_same(client: httpx.Client, settings: Settings):
    problem = refused(client, ("films.zip", zipped({"a.png": FILM}, ("a.png", OTHER))))
    assert [(file["name"], file["code"]) for file in problem["files"]] == [("a.png", "ambiguous_name")]
    assert blobs(settings) == []


def test_files_of_a_form_may_share_a_name(client: httpx.Client):
    made = accepted(client, ("blob", FILM), ("blob", FILM))
    assert len({file["job"] for file in made["files"]}) == 2


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_cannot_be_a_job_is_named_and_nothing_is_left(client, settings, database, as_zip):
    entries = {
        "good.png": FILM,
        "empty.png": b"",
        "notes.txt": b"a text",
        "inner.zip": zipped(ENTRIES),
        "too.png": OTHER,
    }
    files = [("films.zip", zipped(entries))] if as_zip else list(entries.items())
    problem = refused(client, *files)
    assert (problem["status"], problem["code"]) == (422, "files_refused")
    assert {file["name"]: file["code"] for file in problem["files"]} == CODES
    assert (blobs(settings), rows(database)) == ([], (0, 0))


def test_names_are_labels_and_never_paths(client: httpx.Client, settings: Settings):
    entries = {"../../../evil.png": FILM, "/etc/cron.d/evil.png": OTHER}
    made = accepted(client, ("films.zip", zipped(entries)), external_id="x")
    listed = client.get(made["jobs"]).json()["jobs"]
    assert {job["external_id"] for job in listed} == {"x/evil.png", "x/etc/cron.d/evil.png"}
    assert {path.name for path in blobs(settings)} == {"input"}


def test_a_long_path_keeps_its_end(client: httpx.Client):
    folders = "/".join(f"1.2.840.{n}.{'7' * 40}" for n in range(4))
    made = accepted(client, ("films.zip", zipped({f"{folders}/film.dcm": FILM})), external_id="night")
    (job,) = client.get(made["jobs"]).json()["jobs"]
    assert made["files"][0]["name"] == f"{folders}/film.dcm"
    assert job["external_id"] == f"night/{'/'.join(folders.split('/')[-2:])}/film.dcm"
    problem = refused(client, ("films.zip", zipped({f"{'x' * 129}.png": FILM})))
    assert problem["files"][0]["code"] == "invalid_name"


@pytest.mark.parametrize(
    ("files", "fields", "status", "code"),
    [
        ([], {}, 422, "missing_file"),
        ([("a.zip", zipped({}))], {}, 422, "empty_batch"),
        ([("a.zip", zipped({"a/": b""}))], {}, 422, "empty_batch"),
        ([("a.zip", zipped(ENTRIES)[:200])], {}, 422, "malformed_archive"),
        ([("a.png", FILM), ("a.zip", zipped(ENTRIES))], {}, 422, "files_refused"),
        ([("a.png", FILM)], {"external_id": "x" * 65}, 422, "invalid_request"),
        ([("a.png", FILM)], {"priority": "soon"}, 422, "invalid_request"),
        ([("a.png", FILM)], {"reuse": "true"}, 422, "invalid_request"),
        ([(f"{n}.png", FILM) for n in range(5)], {}, 413, "too_many_files"),
        ([("a.zip", zipped({f"{n}.png": FILM for n in range(5)}))], {}, 413, "too_many_files"),
        ([("a.zip", zipped({f"{n}.png": FILM + os.urandom(400_000) for n in range(2)}))], {}, 413, "too_large"),
        ([("a.png", FILM + bytes(2**19))], {}, 422, "files_refused"),
    ],
)
def test_what_is_no_batch_leaves_nothing(settings, key, database, files, fields, status, code):
    small = {"batch_files": 4, "batch_bytes": 2**19 + 2**18, "max_upload_bytes": 2**19}
    with serving(settings.model_copy(update=small)) as url, client_of(url, key) as client:
        if not files:
            answer = client.post("/v1/batches", files={"priority": (None, "stat")})
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        else:
            problem = refused(client, *files, **fields)
            assert (problem["status"], problem["code"]) == (status, code)
    assert (blobs(settings), rows(database)) == ([], (0, 0))


def test_an_image_in_another_field_is_refused(client: httpx.Client):
    answer = client.post("/v1/batches", files=[("file", ("a.png", FILM)), ("image", ("b.png", FILM))])
    assert answer.status_code == 422


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file of this process may be larger, which is how a full disk looks to whoever writes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_midway_leaves_nothing(client: httpx.Client, settings: Settings, database: Database):
    with full_beyond(2**21):
        problem = refused(client, ("a.png", FILM), ("large.png", FILM + bytes(2**21)), ("b.png", OTHER))
    assert (problem["status"], problem["code"]) == (507, "storage_full")
    assert (blobs(settings), rows(database)) == ([], (0, 0))


def test_a_database_that_goes_away_midway_leaves_nothing(
    client: httpx.Client, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    """After the files, before the rows."""
    store = batching._store

    def stored_at_last(*arguments: Any) -> None:
        store(*arguments)
        event.listen(Engine, "begin", refuse)

    def refuse(*_: object) -> None:
        raise OperationalError("BEGIN", {}, ConnectionResetError())

    monkeypatch.setattr(batching, "_store", stored_at_last)
    try:
        answer = sent(client, ("a.png", FILM), ("b.png", OTHER))
    finally:
        event.remove(Engine, "begin", refuse)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert (blobs(settings), rows(database)) == ([], (0, 0))


def test_a_form_of_many_files_needs_few_descriptors(settings: Settings, key: str):
    """Each file is larger than what a part may hold in memory; all of them share one spool."""
    film = FILM + bytes(2**17)
    open_files = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            open_files.append(psutil.Process().num_fds())

    watching = threading.Thread(target=watch)
    with serving(settings) as url, client_of(url, key) as client:
        accepted(client, ("a.png", FILM))
        before = psutil.Process().num_fds()
        watching.start()
        made = accepted(client, *((f"{n}.png", film) for n in range(200)))
        done.set()
        watching.join()
        assert len(made["files"]) == 200
        job = client.get(f"/v1/jobs/{made['files'][150]['job']}").json()
    assert job["input"]["bytes"] == len(film)
    assert max(open_files) < before + 50


def test_a_batch_reaches_a_bucket(settings: Settings, key: str):
    """Files of a form and of an archive go to the object store as the stretches of a spool that they are."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        httpx.put(f"{url}/films").raise_for_status()
        given = {"storage_url": "s3://films/x", "s3_endpoint": url, "s3_access_key": "a", "s3_secret_key": "b"}
        settings = settings.model_copy(update=given)
        large = FILM + os.urandom(5 * 2**20)
        with serving(settings) as api, client_of(api, key) as client:
            made = accepted(client, ("a.png", FILM), ("large.png", large), ("b.png", OTHER))
            packed = accepted(client, ("films.zip", zipped({"a.png": FILM, "large.png": large})))
            assert refused(client, ("a.png", FILM), ("empty.png", b""))["code"] == "files_refused"
        store = open_storage(settings)
        found = {blob.key.split("/")[1]: store.get(blob.key) for blob in store.list()}
    finally:
        server.stop()
    jobs_of = [file["job"] for batch in (made, packed) for file in batch["files"]]
    assert [found[job_id] for job_id in jobs_of] == [FILM, large, OTHER, FILM, large]
    assert len(found) == 5


def test_a_batch_beyond_the_cap_waits_outside(client, settings, key, database, tenant_id):
    with transaction(database) as session:
        tenants.configure(session, session.get_one(tenants.Tenant, tenant_id), {"queued_cap": 3})
    accepted(client, ("a.png", FILM), ("b.png", OTHER))
    answer = sent(client, ("a.png", FILM), ("b.png", OTHER))
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) > 0
    assert (len(blobs(settings)), rows(database)) == (2, (1, 2))


# ---------------------------------------------------------------- the same request twice


@both
def test_the_same_batch_twice_is_one(client: httpx.Client, settings: Settings, database: Database):
    files, headers = [("a.png", FILM), ("b.png", OTHER)], {"Idempotency-Key": "night-1"}
    first = sent(client, *files, headers=headers, external_id="x")
    again = sent(client, *files, headers=headers, external_id="x")
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["Location"] == first.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (len(blobs(settings)), rows(database)) == (2, (1, 2))
    for other in (sent(client, *files, headers=headers), sent(client, *files[:1], headers=headers, external_id="x")):
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_batch_that_was_refused_frees_its_key(client: httpx.Client):
    headers = {"Idempotency-Key": "night-2"}
    assert sent(client, ("a.png", b""), headers=headers).status_code == 422
    assert sent(client, ("a.png", FILM), headers=headers).status_code == 202


# ---------------------------------------------------------------- reading


def test_batches_are_listed_in_pages(client: httpx.Client):
    made = [accepted(client, ("a.png", FILM))["id"] for _ in range(5)]
    found, cursor = [], None
    while True:
        page = client.get("/v1/batches", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        found += [batch["id"] for batch in page["batches"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == made[::-1]
    assert client.get("/v1/batches", params={"cursor": "nonsense"}).json()["code"] == "invalid_cursor"


def test_another_tenants_batch_is_not_found(client: httpx.Client, url: str, database: Database):
    made = accepted(client, ("a.png", FILM))
    with transaction(database) as session:
        stranger = tenants.create_key(session, tenants.create(session, "elsewhere").id)
    with client_of(url, stranger) as other:
        assert other.get(f"/v1/batches/{made['id']}").status_code == 404
        assert other.post(f"/v1/batches/{made['id']}/cancel").status_code == 404
        assert other.get("/v1/batches").json()["batches"] == []
        assert other.get(made["jobs"]).json()["jobs"] == []
    for strange in ("bat_01JDJ5W1M0QZ8N4T7X2B9C3D6F", "nonsense", made["files"][0]["job"]):
        assert client.get(f"/v1/batches/{strange}").status_code == 404


# ---------------------------------------------------------------- canceling and finishing


@both
def test_a_batch_is_counted_until_it_finishes(client: httpx.Client, hand: Hand, database: Database):
    made = accepted(client, ("a.png", FILM), ("b.png", FILM), ("c.png", FILM), ("d.png", FILM))
    where = f"/v1/batches/{made['id']}"
    hand.succeed()
    hand.reject()
    hand.claim()
    counts = client.get(where).json()["counts"]
    assert counts == {"queued": 1, "running": 1, "succeeded": 1, "rejected": 1, "failed": 0, "canceled": 0}
    after = client.post(f"{where}/cancel").json()
    assert (after["counts"]["canceled"], after["counts"]["running"], after["finished_at"]) == (1, 1, None)
    assert events(database, "batch.finished") == []
    with reading(database) as session:
        (running,) = session.scalars(select(Job).where(Job.status == "running"))
        assert running.cancel_requested
        claim = ledger.Claim(Job, running.id, running.tenant_id, str(running.lease_token), running.attempt)
    with transaction(database) as session:
        jobs.stop(session, claim)
    last = client.get(where).json()
    assert last["finished_at"] is not None
    assert last["counts"]["canceled"] == 2
    (event,) = events(database, "batch.finished")
    assert event.payload == {"batch": made["id"], "counts": last["counts"]}
    assert (event.mode, event.job_id) == ("live", None)


def test_canceling_twice_is_no_error_but_too_late_is(client: httpx.Client, hand: Hand):
    first = accepted(client, ("a.png", FILM))
    for _ in range(2):
        answer = client.post(f"/v1/batches/{first['id']}/cancel")
        assert (answer.status_code, answer.json()["counts"]["canceled"]) == (200, 1)
    second = accepted(client, ("a.png", FILM))
    hand.succeed()
    answer = client.post(f"/v1/batches/{second['id']}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "already_ended")


@both
def test_a_batch_finishes_once_however_its_jobs_end_at_the_same_moment(database, settings, tenant_id):
    """Workers that succeed and fail, an owner who cancels jobs and the batch, and a sweeper, all at once."""
    for number in range(4):
        _race(database, settings.model_copy(update={"max_attempts": 1}), tenant_id, f"bat_{number}", 24)
    finished = events(database, "batch.finished")
    assert sorted(event.payload["batch"] for event in finished) == [f"bat_{number}" for number in range(4)]
    with reading(database) as session:
        assert session.scalars(select(Batch.open)).all() == [0] * 4
        ends = select(Event.job_id, func.count()).where(Event.type.like("job.%")).group_by(Event.job_id)
        assert {count for _, count in session.execute(ends)} == {1}
    for one in finished:
        assert sum(one.payload["counts"].values()) == 24
        assert one.payload["counts"]["queued"] == one.payload["counts"]["running"] == 0


def _race(database: Database, settings: Settings, tenant_id: str, batch_id: str, total: int) -> None:
    with transaction(database) as session:
        batches.create(session, tenant_id=tenant_id, batch_id=batch_id, total=total)
        columns = {"tenant_id": tenant_id, "batch_id": batch_id, "blob_key": "k", "media_type": "image/png"}
        ids = [jobs.new_id() for _ in range(total)]
        for job_id in ids:
            jobs.submit(session, settings, job_id=job_id, size=1, sha256="0" * 64, **columns)
    with transaction(database) as session:
        held = ledger.claim_next(session, Job, total // 3, lease_s=60)
        dead = ledger.claim_next(session, Job, total // 3, lease_s=-1)
    assert len(held) == len(dead) == total // 3
    start = threading.Barrier(len(held) + 4)

    def act(does: Callable[[Any], object]) -> None:
        start.wait(30)
        with transaction(database) as session:
            does(session)

    def cancel_one(session: Any) -> None:
        with suppress(Conflict):
            jobs.cancel(session, tenant_id, ids[-1])

    with ThreadPoolExecutor(len(held) + 4) as pool:
        running = [pool.submit(act, _ending(claim, number)) for number, claim in enumerate(held)]
        running += [pool.submit(act, lambda session: batches.cancel(session, tenant_id, batch_id)) for _ in range(2)]
        running += [pool.submit(act, cancel_one), pool.submit(act, lambda session: jobs.expire(session, settings))]
        for future in running:
            future.result(60)
    with transaction(database) as session:
        jobs.expire(session, settings)  # what the first sweep skipped because others held it


def _ending(claim: ledger.Claim, number: int) -> Callable[[Any], object]:
    if number % 2:
        return lambda session: jobs.finish(session, claim, analysis(), [])
    return lambda session: jobs.fail(session, claim, Failure(code="internal_error", detail="x"))


# ---------------------------------------------------------------- rehearsing


def test_a_batch_of_a_test_key_is_rehearsed(settings: Settings, url: str, database: Database, tenant_id: str):
    with transaction(database) as session:
        key = tenants.issue_key(session, tenant_id, mode=TEST).key
    with client_of(url, key) as client:
        made = accepted(client, ("test_uncertain", FILM), ("test_rejected_too_small", FILM), ("any.png", FILM))
        assert made["test"] is True
        problem = refused(client, ("test_typo", FILM))
        assert problem["files"][0]["code"] == "unknown_rehearsal"
        with transaction(database) as session:
            assert ledger.claim_next(session, Job, 10, lease_s=60) == []
        rehearsal.play(database, open_storage(settings))
        counts = client.get(f"/v1/batches/{made['id']}").json()["counts"]
    assert (counts["succeeded"], counts["rejected"], counts["queued"]) == (2, 1, 0)
    (event,) = events(database, "batch.finished")
    assert event.mode == "test"
