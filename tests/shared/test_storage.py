"""Blobs on a local directory and on a server that speaks S3: the same promises."""

from __future__ import annotations

import errno
import io
import os
from datetime import UTC, datetime, timedelta

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from shared.errors import Misconfigured, NotFound, StorageFull, Unavailable
from shared.settings import Settings
from shared.storage import LocalStorage, S3Storage, open_storage

BUCKET = "films"


@pytest.fixture(scope="module")
def s3_url():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return open_storage(Settings(home=tmp_path))
    url = request.getfixturevalue("s3_url")
    httpx.put(f"{url}/{BUCKET}").raise_for_status()
    return open_storage(_s3(tmp_path, url))


def _s3(home, url) -> Settings:
    keys = {"s3_access_key": "test", "s3_secret_key": "test"}
    return Settings(home=home, storage_url=f"s3://{BUCKET}/hilum", s3_endpoint=url, **keys)


def test_what_is_put_is_got(storage):
    storage.put("ten_a/job_b/input", b"bytes", "image/png")
    storage.put("ten_a/job_b/1/lungs.png", io.BytesIO(b"x" * 3_000_000), "image/png")
    assert storage.get("ten_a/job_b/input") == b"bytes"
    assert storage.get("ten_a/job_b/1/lungs.png") == b"x" * 3_000_000


def test_what_is_deleted_is_gone_and_may_be_deleted_again(storage):
    storage.put("ten_a/job_b/input", b"bytes", "image/png")
    for _ in range(2):
        storage.delete("ten_a/job_b/input")
    with pytest.raises(NotFound):
        storage.get("ten_a/job_b/input")


def test_what_is_held_is_listed(storage):
    before = datetime.now(UTC) - timedelta(seconds=2)
    held = {"ten_x/job_b/input": b"bytes", "ten_x/job_b/1/lungs.png": b"x" * 10, "ten_x/job_c/input": b""}
    for key, data in held.items():
        storage.put(key, data, "image/png")
    found = {blob.key: blob for blob in storage.list("ten_x")}
    assert {key: blob.size for key, blob in found.items()} == {key: len(data) for key, data in held.items()}
    assert all(before < blob.modified_at < datetime.now(UTC) + timedelta(seconds=2) for blob in found.values())
    assert held.keys() <= {blob.key for blob in storage.list()}
    assert {blob.key for blob in storage.list("ten_x/job_b")} == {"ten_x/job_b/input", "ten_x/job_b/1/lungs.png"}
    assert list(storage.list("ten_x/job")) == []
    assert list(storage.list("ten_nobody")) == []


def test_more_than_one_answer_of_s3_is_listed(s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    httpx.put(f"{s3_url}/{BUCKET}").raise_for_status()
    storage = open_storage(_s3(tmp_path, s3_url))
    keys = [f"ten_many/{number}" for number in range(10)]
    for key in keys:
        storage.put(key, b"x", "image/png")
    assert sorted(blob.key for blob in storage.list("ten_many")) == keys


def test_what_half_a_write_left_is_listed_and_deleted(tmp_path):
    storage = LocalStorage(tmp_path)
    part = tmp_path / "ten_a" / "job_b" / ".0123456789abcdef.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    (tmp_path / "ten_a" / ".hidden").write_bytes(b"not ours")
    (found,) = storage.list()
    assert (found.key, found.size) == ("ten_a/job_b/.0123456789abcdef.part", 4)
    with pytest.raises(ValueError, match="not a storage key"):
        storage.get(found.key)
    storage.delete(found.key)
    assert not part.exists()


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path):
    (tmp_path / "blobs").write_bytes(b"a file where the folder should be")
    with pytest.raises(Unavailable):
        list(LocalStorage(tmp_path / "blobs").list())


@pytest.mark.parametrize(
    "key", ["../out", "a/../../out", "/etc/passwd", "a//b", "", ".hidden", "a/.part", "a\\b", "a\n"]
)
def test_no_key_leaves_its_root(storage, key):
    for act in (storage.get, storage.delete, storage.url, lambda k: storage.put(k, b"x", "image/png")):
        with pytest.raises(ValueError, match="not a storage key"):
            act(key)


def test_it_says_where_a_blob_is(storage):
    storage.put("ten_a/input", b"x", "image/png")
    assert storage.url("ten_a/input").startswith(("file:///", f"s3://{BUCKET}/hilum/"))
    assert storage.url("ten_a/input").endswith("/ten_a/input")


def test_a_store_that_is_there_checks_well(storage):
    storage.check()


def test_the_media_type_travels_to_s3(s3_url, tmp_path):
    httpx.put(f"{s3_url}/{BUCKET}").raise_for_status()
    open_storage(_s3(tmp_path, s3_url)).put("ten_a/input", b"x", "application/dicom")
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    head = boto3.client("s3", endpoint_url=s3_url, **keys).head_object(Bucket=BUCKET, Key="hilum/ten_a/input")
    assert head["ContentType"] == "application/dicom"


def test_a_store_that_is_away_is_unavailable(tmp_path):
    away = S3Storage(_s3(tmp_path, "http://127.0.0.1:9"), BUCKET, "hilum")
    with pytest.raises(Unavailable):
        away.check()


def test_a_full_disk_is_storage_full_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        LocalStorage(tmp_path).put("ten_a/input", b"x", "image/png")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_unknown_store_is_named(tmp_path):
    with pytest.raises(Misconfigured, match="ftp"):
        open_storage(Settings(home=tmp_path, storage_url="ftp://somewhere"))
