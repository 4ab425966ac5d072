"""`hilum storage orphans`: what no row names is found and deleted, what a row names never is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import String, delete, select
from sqlalchemy import inspect as inspected

from api import orphans
from shared import jobs, ledger
from shared.artifacts import Stored, key_of
from shared.columns import Base
from shared.db import Database, reading, transaction
from shared.models import Deed, Job
from shared.settings import ROOT, Settings, environment
from shared.storage import Storage, open_storage
from tests.values import analysis

SOON = datetime.now(UTC) + timedelta(hours=1)
LONG_AGO = datetime.now(UTC) - timedelta(days=30)


def submit(database: Database, store: Storage, settings: Settings, tenant_id: str) -> str:
    """A job whose blob is stored; returns its id."""
    job_id = jobs.new_id()
    key = f"{tenant_id}/{job_id}/input"
    store.put(key, b"film", "image/png")
    columns = {"media_type": "image/png", "size": 4, "sha256": "0" * 64}
    with transaction(database) as session:
        jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, blob_key=key, **columns)
    return job_id


def succeed(database: Database, store: Storage) -> str:
    """The next job ends with a picture; returns the picture's key."""
    with transaction(database) as session:
        (claim,) = ledger.claim_next(session, Job, 1, lease_s=60)
    key = key_of(claim.tenant_id, claim.id, claim.attempt, "lungs.png")
    store.put(key, b"mask", "image/png")
    with transaction(database) as session:
        jobs.finish(session, claim, analysis(), [Stored("lungs.png", key, "image/png", 4)])
    return key


@pytest.fixture(scope="module")
def s3_url():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, settings: Settings) -> Storage:
    if request.param == "local":
        return open_storage(settings)
    url = request.getfixturevalue("s3_url")
    bucket = f"b{os.urandom(4).hex()}"
    httpx.put(f"{url}/{bucket}").raise_for_status()
    given = {"storage_url": f"s3://{bucket}/x", "s3_endpoint": url, "s3_access_key": "a", "s3_secret_key": "b"}
    return open_storage(settings.model_copy(update=given))


def keys(found: orphans.Compared) -> list[str]:
    return [blob.key for blob in found.orphans]


def test_what_no_row_names_is_found_and_deleted(database, store, settings, tenant_id):
    for _ in range(3):
        submit(database, store, settings, tenant_id)
    named = {succeed(database, store)}
    lost = [f"{tenant_id}/job_gone/input", f"{tenant_id}/job_gone/1/lungs.png", "strange"]
    for key in lost:
        store.put(key, b"lost", "image/png")
    found = orphans.compare(database, store, SOON)
    assert keys(found) == sorted(lost)
    assert [blob.size for blob in found.orphans] == [4, 4, 4]
    assert (found.blobs, found.missing) == (7, [])
    assert orphans.collect(database, store, found.orphans) == 3
    again = orphans.compare(database, store, SOON)
    assert (again.blobs, again.orphans, again.missing) == (4, [], [])
    assert named <= {blob.key for blob in store.list()}
    with reading(database) as session:
        (deed,) = session.scalars(select(Deed).where(Deed.action == "storage.collected"))
    assert deed.detail == {"blobs": 3}


def test_a_young_blob_may_be_an_upload_under_way(database, store):
    store.put("ten_a/job_b/input", b"film", "image/png")
    assert keys(orphans.compare(database, store, LONG_AGO)) == []
    assert keys(orphans.compare(database, store, SOON)) == ["ten_a/job_b/input"]


def test_a_row_whose_blob_is_gone_is_reported(database, store, settings, tenant_id):
    first, second = (submit(database, store, settings, tenant_id) for _ in range(2))
    picture = succeed(database, store)
    store.delete(picture)
    store.delete(f"{tenant_id}/{second}/input")
    found = orphans.compare(database, store, SOON)
    assert found.missing == sorted([picture, f"{tenant_id}/{second}/input"])
    assert (found.blobs, found.orphans) == (1, [])
    assert first < second


def test_what_a_row_has_come_to_name_is_not_deleted(database, store, settings, tenant_id):
    job_id = jobs.new_id()
    key = f"{tenant_id}/{job_id}/input"
    store.put(key, b"film", "image/png")
    found = orphans.compare(database, store, SOON)
    assert keys(found) == [key]
    with transaction(database) as session:
        columns = {"media_type": "image/png", "size": 4, "sha256": "0" * 64}
        jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, blob_key=key, **columns)
    assert orphans.collect(database, store, found.orphans) == 0
    assert store.get(key) == b"film"


def test_jobs_that_come_and_go_meanwhile_are_neither_orphans_nor_missing(database, settings, tenant_id):
    """Submitted and purged, blob first and row first, while the store is compared again and again."""
    store, done = open_storage(settings), threading.Event()

    def churn() -> None:
        while not done.is_set():
            job_id = submit(database, store, settings, tenant_id)
            with transaction(database) as session:
                session.execute(delete(Job).where(Job.id == job_id))
            store.delete(f"{tenant_id}/{job_id}/input")

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(20):
            assert orphans.compare(database, store, SOON).missing == []
    finally:
        done.set()
        churning.join()


def test_every_column_that_names_a_blob_is_asked():
    """A column that is added and forgotten would make orphans of what it names."""
    naming = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.name.split("_")[-1] == "key" and isinstance(column.type, String) and column.type.length == 160
    }
    assert naming == {"jobs.blob_key", "artifacts.key"}
    assert all(name in str(orphans._named()) for name in naming)


@pytest.fixture
def hilum(settings: Settings) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", *words]
        return subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, timeout=250)

    return run


def test_the_command_lists_and_deletes_what_is_old(hilum, database, settings, tenant_id):
    store = open_storage(settings)
    submit(database, store, settings, tenant_id)
    for key in ("ten_a/job_old/input", "ten_a/job_new/input"):
        store.put(key, b"lost", "image/png")
    part = settings.home / "blobs" / "ten_a" / "job_old" / ".0123456789abcdef.part"
    part.write_bytes(b"half")
    for path in (part, part.with_name("input")):
        os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    listed = hilum("storage", "orphans")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "job_old/input" in listed.stdout
    assert "job_new" not in listed.stdout
    assert "4 blobs, 2 orphans of 8 bytes, 0 missing" in listed.stdout
    assert part.exists()
    assert "deleted 2" in hilum("storage", "orphans", "--delete").stdout
    assert not part.parent.exists()
    assert (settings.home / "blobs" / "ten_a" / "job_new" / "input").exists()
    shutil.rmtree(settings.home / "blobs" / tenant_id)
    missing = hilum("storage", "orphans")
    assert missing.returncode == 1
    assert f"missing  {tenant_id}/" in missing.stdout
    assert hilum("storage", "orphans", "--delete", "--older-than-hours", "0").returncode == 2


def test_the_comparison_leaves_no_table_behind(database, settings):
    before = set(inspected(database.engine).get_table_names())
    for _ in range(3):
        orphans.compare(database, open_storage(settings), SOON)
        assert inspected(database.engine).get_temp_table_names() == []
    assert set(inspected(database.engine).get_table_names()) == before
