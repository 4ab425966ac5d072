"""accept(): many files, or one zip archive, become one batch; all of its jobs are durable, or nothing is left."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from pydantic import Field
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from api import archives, content, idempotency, intake
from api.archives import Archive, Limits, Skipped
from api.deps import Caller, Parts
from api.intake import Upload
from shared import batches, deeds, jobs, rehearsal
from shared.batches import BatchView
from shared.db import together
from shared.deeds import By
from shared.errors import EmptyFile, HilumError, Invalid, TooLarge, UnsupportedType
from shared.idempotency import Answer, Claim, note
from shared.models import TEST
from shared.schemas import Frozen, Priority

EXTERNAL_ID_LENGTH = 128  # of a job
MOST_REFUSED = 100  # files that one answer names
STORED_FILES_PER_S = 10  # slower than any store that works
REFUSALS = (EmptyFile, UnsupportedType, TooLarge, Invalid)


class Wishes(Frozen):
    """What a client asks for beside the files; `explain` and `priority` are meant for each of the jobs."""

    explain: intake.Methods = Field(default_factory=list)
    priority: Priority = "routine"
    external_id: str | None = Field(None, min_length=1, max_length=64, pattern=intake.PRINTABLE)
    metadata: intake.Metadata = Field(default_factory=dict)


class BatchFile(Frozen):
    """A file of a batch, as the client called it, and its job."""

    name: str
    job: str


class BatchSkip(Frozen):
    """What an archive holds besides the client's files, and why no job was made of it."""

    name: str
    reason: str = Field(description="directory, hidden, dicomdir or duplicate")


class BatchAccepted(BatchView):
    """A new batch, and what became of each file."""

    files: list[BatchFile]
    skipped: list[BatchSkip]


class Order(NamedTuple):
    """What one request asks for: who asks, how the audit log names them, the files and the wishes."""

    caller: Caller
    by: By
    files: list[UploadFile]
    wishes: Wishes


@dataclass
class Take:
    """The files of one batch on their way into the storage; `taken` are those whose blobs are there."""

    parts: Parts
    order: Order
    taken: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # name, columns of the job
    refused: list[dict[str, str]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    sha256s: dict[str, str] = field(default_factory=dict)  # of what an archive holds, by its label


Tell = Callable[[BatchAccepted], Answer]


def accept(parts: Parts, order: Order, key: str | None, tell: Tell) -> Answer:
    """What is answered to a new batch, or was answered to the same request with this `key` before.

    Raises Invalid, which names each file that cannot be a job, TooLarge, Throttled, StorageFull, Unavailable or
    Conflict; then nothing is left behind.
    """
    request = None
    if key is not None:
        wishes = order.wishes.model_dump(mode="json")
        request = idempotency.keyed(order.caller, key, "POST /v1/batches", _sha256(order.files), wishes)
    packed = len(order.files) == 1 and archives.is_zip(_head(order.files[0].file))
    size = parts.settings.batch_bytes if packed else sum(upload.size or 0 for upload in order.files)
    most_s = size / idempotency.STORED_BYTES_PER_S + parts.settings.batch_files / STORED_FILES_PER_S
    return idempotency.once(parts.database, request, partial(_accept, parts, order, tell), takes_s=most_s)


def _accept(parts: Parts, order: Order, tell: Tell, claim: Claim | None) -> Answer:
    take = Take(parts, order)
    try:
        _store(take)
        intake.ensure_room(parts.database, order.caller, len(take.taken))
    except BaseException:
        _forget(take)
        raise

    def submit(session: Session) -> Answer:
        answer = tell(_submitted(session, take))
        if claim is not None:
            note(session, claim, answer)
        return answer

    try:
        return together(parts.database, submit, waits=True)  # nobody shall wait for the rows of a thousand jobs
    except HilumError:
        # Refused before the commit. After a commit of unknown outcome the blobs must stay: their jobs may need them.
        _forget(take)
        raise


def _store(take: Take) -> None:
    """Put every file into the storage, unless one is refused; Invalid names those that cannot be jobs."""
    uploads, settings = take.order.files, take.parts.settings
    if len(uploads) == 1 and archives.is_zip(_head(uploads[0].file)):
        limits = Limits(settings.batch_files, settings.max_upload_bytes, settings.batch_bytes)
        with archives.opened(uploads[0].file, limits) as archive:
            take.skipped += archive.skipped
            _store_each(take, _unpacked(archive), in_archive=True)
    else:
        _store_each(take, ((upload.filename or "", nullcontext(upload.file)) for upload in uploads))
    if take.refused:
        raise Invalid("Not every file can be a job, so none was made.", code="files_refused", files=take.refused)
    if not take.taken:
        raise Invalid("The archive holds no file that could be a job.", code="empty_batch")


Opening = AbstractContextManager[BinaryIO]


def _unpacked(archive: Archive) -> Iterator[tuple[str, Opening]]:
    for info in archive.files:
        yield info.filename, closing(archives.unpack(archive, info))


def _store_each(take: Take, files: Iterable[tuple[str, Opening]], in_archive: bool = False) -> None:
    for name, opening in files:
        with opening as file:
            try:
                upload, label = _checked(take, name, file)
                twice = in_archive and _twice(take, label, upload.sha256)
            except REFUSALS as error:
                take.refused.append({"name": name[: archives.SHOWN], "code": error.code, "detail": error.detail})
                if len(take.refused) == MOST_REFUSED:
                    return
                continue
            if twice:
                take.skipped.append(Skipped(name, "duplicate"))
            elif not take.refused:
                _store_one(take, name, label, upload)


def _checked(take: Take, name: str, file: BinaryIO) -> tuple[Upload, str]:
    """What the file is, and its name as a label. Raises one of REFUSALS."""
    if archives.is_packed(_head(file)):
        raise Invalid("It is an archive, or compressed.", code="nested_archive")
    label = archives.label(name)
    external_id = _external_id(take, label)
    if len(external_id or "") > EXTERNAL_ID_LENGTH:
        raise Invalid("The name is too long.", code="invalid_name")
    if take.order.caller.mode == TEST:
        rehearsal.check(external_id)
    return intake.inspect(file, take.parts.settings.max_upload_bytes), label


def _twice(take: Take, label: str, sha256: str) -> bool:
    """Whether the archive holds the very same file under this name already; Invalid when it is another."""
    if label not in take.sha256s:
        take.sha256s[label] = sha256
        return False
    if take.sha256s[label] != sha256:
        raise Invalid("The archive holds two different files of this name.", code="ambiguous_name")
    return True


def _store_one(take: Take, name: str, label: str, upload: Upload) -> None:
    job_id = jobs.new_id()
    key = f"{take.order.caller.tenant_id}/{job_id}/input"
    take.parts.storage.put(key, upload.file, upload.media_type)
    columns = {
        "job_id": job_id,
        "blob_key": key,
        "external_id": _external_id(take, label),
        "media_type": upload.media_type,
        "size": upload.size,
        "sha256": upload.sha256,
    }
    take.taken.append((name, columns))


def _external_id(take: Take, label: str) -> str | None:
    """The batch's external_id and the label behind it, or as many of its last parts as fit, but one at least."""
    first = [take.order.wishes.external_id] if take.order.wishes.external_id else []
    parts = label.split("/") if label else []
    while len(parts) > 1 and len("/".join(first + parts)) > EXTERNAL_ID_LENGTH:
        parts.pop(0)
    return "/".join(first + parts) or None


def _submitted(session: Session, take: Take) -> BatchAccepted:
    order, wishes, settings = take.order, take.order.wishes, take.parts.settings
    whose: dict[str, Any] = {
        "tenant_id": order.caller.tenant_id,
        "mode": order.caller.mode,
        "batch_id": batches.new_id(),
    }
    named: dict[str, Any] = {"external_id": wishes.external_id, "metadata": wishes.metadata}
    batch = batches.create(session, total=len(take.taken), **whose, **named)
    for _, columns in take.taken:
        jobs.submit(session, settings, explain=wishes.explain, priority=wishes.priority, **whose, **columns)
    deeds.record(session, "batch.submitted", batch.id, tenant_id=batch.tenant_id, **order.by, jobs=batch.total)
    return BatchAccepted(
        **batches.view(session, batch).model_dump(),
        files=[BatchFile(name=name, job=columns["job_id"]) for name, columns in take.taken],
        skipped=[BatchSkip(name=skipped.name, reason=skipped.reason) for skipped in take.skipped],
    )


def _forget(take: Take) -> None:
    """Nothing of a batch that was refused stays in the storage; what cannot be removed now, orphan collection finds."""
    for _, columns in take.taken:
        with contextlib.suppress(HilumError):
            take.parts.storage.delete(columns["blob_key"])


def _head(file: BinaryIO) -> bytes:
    head = file.read(content.HEAD_BYTES)
    file.seek(0)
    return head


def _sha256(files: Iterable[UploadFile]) -> str:
    """One digest of all files and their names, in order."""
    digest = hashlib.sha256()
    for upload in files:
        inner = hashlib.file_digest(upload.file, "sha256")  # type: ignore[arg-type]
        upload.file.seek(0)
        digest.update(json.dumps([upload.filename, inner.hexdigest()]).encode())
    return digest.hexdigest()
