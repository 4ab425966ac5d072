"""accept(): the only way in. Content check, sha256 and blob first, then one transaction that makes the job."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Annotated, BinaryIO

from pydantic import BeforeValidator, Field, JsonValue
from sqlalchemy.orm import Session

from api import content
from shared import jobs, views
from shared.db import Database, together
from shared.errors import EmptyFile, HilumError, TooLarge
from shared.schemas import Frozen, JobView, Method, Priority
from shared.settings import Settings
from shared.storage import Storage

METADATA_BYTES = 4096
CHUNK_BYTES = 2**20
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"


def _csv(value: object) -> object:
    if not isinstance(value, str):
        return value
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    if len(value.encode("utf-8", "surrogatepass")) > METADATA_BYTES:
        raise ValueError(f"at most {METADATA_BYTES} bytes")
    try:
        parsed = json.loads(value or "{}", parse_constant=_no_constant)
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("not a JSON object in UTF-8") from error
    if "\\u0000" in value:
        raise ValueError("U+0000 cannot be stored")
    return parsed


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Wishes(Frozen):
    """What a client asks for beside the file; unknown fields are refused, for a typo must not lose a `stat`."""

    explain: Annotated[list[Method], BeforeValidator(_csv)] = Field(default_factory=list)
    priority: Priority = "routine"
    external_id: str | None = Field(None, max_length=128, pattern=PRINTABLE)
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_json_object)] = Field(default_factory=dict)


def accept(
    database: Database, storage: Storage, settings: Settings, tenant_id: str, file: BinaryIO, wishes: Wishes
) -> tuple[JobView, int]:
    """Make a durable job of `file`, which stands at its start; returns the job and its version.

    Raises EmptyFile, TooLarge, UnsupportedType, StorageFull or Unavailable; then nothing is left behind.
    """
    media_type, size, sha256 = _inspect(file, settings.max_upload_bytes)
    job_id = jobs.new_id()
    key = f"{tenant_id}/{job_id}/input"
    storage.put(key, file, media_type)

    def submit(session: Session) -> tuple[JobView, int]:
        job = jobs.submit(
            session,
            settings,
            tenant_id=tenant_id,
            job_id=job_id,
            blob_key=key,
            media_type=media_type,
            size=size,
            sha256=sha256,
            **wishes.model_dump(),
        )
        view = views.view(session, job) if wishes.explain else views.view_of_new(job)
        return view, job.version

    try:
        return together(database, submit)
    except HilumError:
        # Refused before the commit. After a commit of unknown outcome the blob must stay: a job may need it.
        with contextlib.suppress(HilumError):
            storage.delete(key)
        raise


def _inspect(file: BinaryIO, max_bytes: int) -> tuple[str, int, str]:
    """Media type by content, size in bytes and sha256 of `file`, in one pass; it stands at its start afterwards."""
    head = file.read(content.HEAD_BYTES)
    if not head:
        raise EmptyFile()
    media_type = content.media_type(head)
    digest, size, chunk = hashlib.sha256(), 0, head
    while chunk:
        digest.update(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"A file may hold {max_bytes} bytes.", limit_bytes=max_bytes)
        chunk = file.read(CHUNK_BYTES)
    file.seek(0)
    return media_type, size, digest.hexdigest()
