"""`hilum backup` and `hilum restore`: rows and blobs of an embedded service in one folder, while it goes on serving.

The database is copied first and the blobs after it, and restored the other way round: no row comes before its blob.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from sqlalchemy import create_engine, null, select, union_all

from api import home
from api.migrate import knows, migrate
from shared.db import url_of
from shared.errors import Conflict, HilumError, Invalid, Misconfigured, NotFound
from shared.models import Artifact, Job
from shared.settings import Settings
from shared.storage import LocalStorage, Storage, open_storage

DATABASE, BLOBS, MANIFEST = "hilum.db", "blobs", "backup.json"
PART = ".part"  # of the name of a folder or a database that is not whole yet

Folder = Annotated[Path, typer.Argument(help="Folder of the backup.", show_default=False)]


@dataclass
class Manifest:
    """What a backup holds; `missing` are keys that its rows name and the store did not hold, or not whole."""

    made_at: str
    revision: str
    sha256: str  # of the database
    jobs: int = 0
    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    sums: dict[str, str] = field(default_factory=dict)  # sha256 of what an analysis left, by key

    @property
    def said(self) -> str:
        """In words."""
        return f"{self.jobs} jobs, {self.files} files, {self.bytes / 1e6:.1f} MB"


class Named(NamedTuple):
    """A blob as a row names it; the sha256 is known of what was uploaded."""

    key: str
    size: int
    sha256: str | None


def backup(folder: Folder) -> None:
    """Copy rows and blobs of the embedded service into a new folder; it may go on serving meanwhile."""
    made = save(Settings(), folder)
    typer.echo(f"{made.said} -> {folder}")
    for key in made.missing:
        typer.echo(f"missing  {key}", err=True)
    raise typer.Exit(1 if made.missing else 0)


def restore(folder: Folder) -> None:
    """Bring a backup back into a home that holds no database; it is upgraded to this version's schema."""
    settings = Settings()
    typer.echo(f"{put_back(settings, folder).said} -> {settings.home}")


def save(settings: Settings, folder: Path) -> Manifest:
    """Make the backup `folder`, which appears when it is whole. Conflict, Misconfigured, StorageFull."""
    source = _database_of(settings)
    part = folder.with_name(folder.name + PART)
    for path in (folder, part):
        if path.exists():
            raise Conflict(f"{path} is there already: name a new folder, or remove it.")
    if not source.exists():
        raise NotFound(f"There is no database at {source}.")
    try:
        with _told():
            made = _saved(settings, source, part)
            part.rename(folder)
            _flush(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return made


def _saved(settings: Settings, source: Path, part: Path) -> Manifest:
    """Make a backup in the folder `part`, which is not there yet."""
    part.mkdir(mode=0o700, parents=True)  # radiographs lie in it
    revision = _copy_database(source, part / DATABASE)
    made = Manifest(datetime.now(UTC).isoformat(), revision, _sha256(part / DATABASE))
    _copy_blobs(part / DATABASE, open_storage(settings), LocalStorage(part / BLOBS), made)
    if made.missing:  # what was purged since the database was copied is not missed
        now = {named.key for named in _named(source)}
        made.missing = [key for key in made.missing if key in now]
    (part / MANIFEST).write_text(json.dumps(asdict(made), indent=2) + "\n", "utf-8")
    _flush(part / MANIFEST)
    return made


def put_back(settings: Settings, folder: Path) -> Manifest:
    """Restore a backup: blobs first, then the database, which appears whole. Invalid, Conflict, Misconfigured."""
    target, made = _database_of(settings), _read(folder)
    with home.only_one(settings.home), _told():
        for path in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
            if path.exists():
                raise Conflict(f"{path} is there already: a backup is restored into a home without a database.")
        expected, restored = set(made.missing), Manifest(made.made_at, made.revision, made.sha256)
        _copy_blobs(folder / DATABASE, LocalStorage(folder / BLOBS), open_storage(settings), restored, made.sums)
        if lost := sorted(set(restored.missing) - expected):
            raise Invalid(f"The backup is damaged: {len(lost)} of its files are gone or altered, {lost[0]} first.")
        part = Path(f"{target}{PART}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / DATABASE, part)
        _flush(part)
        part.rename(target)
        _flush(target.parent)
        migrate(settings)
    return restored


def _database_of(settings: Settings) -> Path:
    """The file of the embedded database; Misconfigured where rows or blobs are kept elsewhere."""
    url = url_of(settings)
    if url.get_backend_name() != "sqlite" or not url.database or not settings.storage.startswith("file:"):
        raise Misconfigured(
            "This is for SQLite with a folder of blobs. PostgreSQL and S3 have tools of their own: see "
            "docs/operations.md, Backup."
        )
    return Path(url.database)


def _copy_database(source: Path, target: Path) -> str:
    """A copy of the database as it is at one moment, in one file; its revision. Writers are not held up."""
    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise HilumError(f"The database is damaged: {found}")
        revision = str(copy.execute("SELECT version_num FROM alembic_version").fetchone()[0])
    _flush(target)
    return revision


def _copy_blobs(
    database: Path, source: Storage, target: Storage, made: Manifest, sums: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Copy every blob that a row of `database` names, whole and unaltered by the `sums`, and count them in `made`."""
    for named in _named(database):
        made.jobs += named.sha256 is not None
        try:
            data = source.get(named.key)
        except NotFound:
            made.missing.append(named.key)
            continue
        found, expected = hashlib.sha256(data).hexdigest(), named.sha256 or sums.get(named.key)
        if len(data) != named.size or expected not in (None, found):
            made.missing.append(named.key)
            continue
        if named.sha256 is None:
            made.sums[named.key] = found
        target.put(named.key, data, "application/octet-stream")
        made.files, made.bytes = made.files + 1, made.bytes + len(data)


def _named(database: Path) -> Iterator[Named]:
    """Every blob that a row of `database` names."""
    inputs = select(Job.blob_key, Job.size, Job.sha256)
    named: Any = union_all(inputs, select(Artifact.key, Artifact.size, null()))
    engine = create_engine(f"sqlite:///{database.resolve()}")
    try:
        with engine.connect() as connection:
            yield from (Named(*row) for row in connection.execute(named))
    finally:
        engine.dispose()


def _read(folder: Path) -> Manifest:
    """The manifest of a whole and unaltered backup that this version can upgrade; Invalid, Misconfigured."""
    try:
        made = Manifest(**json.loads((folder / MANIFEST).read_text("utf-8")))
        whole = _sha256(folder / DATABASE) == made.sha256
    except (OSError, ValueError, TypeError) as error:
        raise Invalid(f"{folder} is no backup that `hilum backup` made.") from error
    if not whole:
        raise Invalid(f"The backup is damaged: {DATABASE} is not the file that was saved.")
    if not knows(made.revision):
        raise Misconfigured(f"A newer version of Hilum made this backup (schema {made.revision}).")
    return made


@contextmanager
def _told() -> Iterator[None]:
    """What the system says about a disk or a file, as an error of ours."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise HilumError(f"It did not succeed: {error}.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """What was written to a file, or renamed within a folder, reaches the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
