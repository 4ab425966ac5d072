"""Blobs: a local directory that survives a power cut, or an S3 bucket, behind the same five verbs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from shared.errors import Misconfigured, NotFound, StorageFull, Unavailable
from shared.settings import Settings

KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
PART = re.compile(rf"(?:{KEY.pattern}/)?\.[0-9a-f]{{16}}\.part")  # what a process that died while writing left
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Blob:
    """What a store holds: under which key, of how many bytes, and since when."""

    key: str
    size: int
    modified_at: datetime


class Storage(Protocol):
    """Where blobs live; a key is made of names and slashes, and a blob once written never changes."""

    def put(self, key: str, data: bytes | BinaryIO, media_type: str) -> None:
        """Store `data` durably under `key`; StorageFull, Unavailable, and then nothing is left."""

    def get(self, key: str) -> bytes:
        """The bytes under `key`; NotFound, Unavailable."""

    def delete(self, key: str) -> None:
        """Remove what is under `key`, if anything is; Unavailable."""

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Every blob, or those under the folder `prefix`, in no order, and what half a write left; Unavailable."""

    def url(self, key: str) -> str:
        """Where the blob is, for people who operate the store."""

    def check(self) -> None:
        """Unavailable when the store cannot be written to."""


def open_storage(settings: Settings) -> Storage:
    """The store that the settings name."""
    parts = urlsplit(settings.storage)
    if parts.scheme == "file":
        return LocalStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        return S3Storage(settings, parts.netloc, parts.path.strip("/"))
    raise Misconfigured(f"HILUM_STORAGE_URL begins with {parts.scheme}://; file:// and s3:// are known")


class LocalStorage:
    """A directory; a blob appears whole or not at all, and has reached the disk when `put` returns."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes | BinaryIO, media_type: str) -> None:
        """Write beside, flush to the disk, rename."""
        path = self._path(key)
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with _local_errors(part):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                shutil.copyfileobj(BytesIO(data) if isinstance(data, bytes) else data, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _flush_directory(path.parent)

    def get(self, key: str) -> bytes:
        """The bytes of the file."""
        with _local_errors():
            return self._path(key).read_bytes()

    def delete(self, key: str) -> None:
        """Remove the file; a folder that is empty by then goes with it."""
        path = self._root / key if PART.fullmatch(key) else self._path(key)
        with _local_errors():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """The files below the folder; one that vanishes meanwhile is left out."""
        with _local_errors():
            for folder, _, names in os.walk(self._path(prefix) if prefix else self._root, onerror=_raise):
                for path in (Path(folder, name) for name in names):
                    key = path.relative_to(self._root).as_posix()
                    with contextlib.suppress(FileNotFoundError):
                        found = path.stat()
                        if KEY.fullmatch(key) or PART.fullmatch(key):
                            yield Blob(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def url(self, key: str) -> str:
        """The file's URL."""
        return self._path(key).resolve().as_uri()

    def check(self) -> None:
        """Whether the folder can be written to."""
        with _local_errors():
            self._root.mkdir(parents=True, exist_ok=True)
            if not os.access(self._root, os.W_OK):
                raise Unavailable("The storage folder cannot be written to.", code="storage_unavailable")

    def _path(self, key: str) -> Path:
        return self._root / _checked(key)


class S3Storage:
    """A bucket of S3 or of a store that speaks its protocol."""

    def __init__(self, settings: Settings, bucket: str, prefix: str) -> None:
        from obstore.store import S3Store  # an installation without S3 need not load it

        if not bucket:
            raise Misconfigured("HILUM_STORAGE_URL names no bucket: s3://bucket/prefix")
        given = {
            "endpoint": settings.s3_endpoint,
            "access_key_id": settings.s3_access_key,
            "secret_access_key": settings.s3_secret_key,
        }
        options = {
            "timeout": "30s",
            "connect_timeout": "3s",
            "allow_http": settings.s3_endpoint.startswith("http:"),
        }
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            region=settings.s3_region,
            client_options=options,  # type: ignore[arg-type]
            retry_config={"max_retries": 3},
            **{name: value for name, value in given.items() if value},  # type: ignore[arg-type]
        )
        self._name = f"s3://{bucket}/{prefix}".rstrip("/")

    def put(self, key: str, data: bytes | BinaryIO, media_type: str) -> None:
        """One object, with its media type."""
        with _s3_errors():
            self._store.put(_checked(key), data, attributes={"Content-Type": media_type})

    def get(self, key: str) -> bytes:
        """The bytes of the object."""
        with _s3_errors():
            return bytes(self._store.get(_checked(key)).bytes())

    def delete(self, key: str) -> None:
        """Remove the object."""
        with _s3_errors(), contextlib.suppress(FileNotFoundError):
            self._store.delete(_checked(key))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """The objects below the prefix, as many at a time as one answer holds."""
        with _s3_errors():
            for page in self._store.list(_checked(prefix) if prefix else None):
                for found in page:
                    yield Blob(found["path"], found["size"], found["last_modified"])

    def url(self, key: str) -> str:
        """The object's s3:// URL."""
        return f"{self._name}/{_checked(key)}"

    def check(self) -> None:
        """Whether the bucket answers."""
        with _s3_errors():
            next(iter(self._store.list(chunk_size=1)), None)


def _checked(key: str) -> str:
    """No key ever leaves its root: `..`, hidden names and absolute paths do not match."""
    if not KEY.fullmatch(key):
        raise ValueError(f"not a storage key: {key!r}")
    return key


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is no empty one; one that is not there is."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _flush_directory(path: Path) -> None:
    """A rename is durable once its directory has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _local_errors(part: Path | None = None) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("There is no such file.", code="blob_not_found") from error
    except OSError as error:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull() from error
        raise Unavailable("The storage does not answer.", code="storage_unavailable") from error


@contextmanager
def _s3_errors() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("There is no such file.", code="blob_not_found") from error
    except BaseError as error:
        raise Unavailable("The storage does not answer.", code="storage_unavailable") from error
