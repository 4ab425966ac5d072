"""accept(): the only way in. Content check, sha256 and blob first, then one transaction that makes the job."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, BinaryIO, NamedTuple

from pydantic import BeforeValidator, Field, JsonValue
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api import content, reuse
from api.deps import Caller, Parts
from api.problems import RETRY_AFTER_S
from api.rates import Window
from api.waiting import Versioned
from shared import deeds, idempotency, jobs, ledger, rehearsal, views
from shared.db import Database, reading, together
from shared.deeds import By
from shared.errors import EmptyFile, HilumError, Throttled, TooLarge
from shared.idempotency import Answer, Claim
from shared.models import TEST, Job
from shared.schemas import Frozen, Method, Priority

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


Methods = Annotated[list[Method], BeforeValidator(_csv)]
Metadata = Annotated[dict[str, JsonValue], BeforeValidator(_json_object)]


class Wishes(Frozen):
    """What a client asks for beside the file; unknown fields are refused, for a typo must not lose a `stat`."""

    explain: Methods = Field(default_factory=list)
    priority: Priority = "routine"
    external_id: str | None = Field(None, max_length=128, pattern=PRINTABLE)
    metadata: Metadata = Field(default_factory=dict)
    reuse: bool = False


class Upload(NamedTuple):
    """A file that was looked at: it stands at its start; `size` in bytes, `sha256` in hex."""

    file: BinaryIO
    media_type: str
    size: int
    sha256: str


class Order(NamedTuple):
    """What one request asks for: who asks, how the audit log names them, the wishes and the file."""

    caller: Caller
    by: By
    wishes: Wishes
    upload: Upload


@dataclass(frozen=True)
class Accepted:
    """A job that a request made or found, as it was at the commit; `claim` is the key its answer is owed to."""

    job: Versioned
    reused: bool = False
    claim: Claim | None = None


Tell = Callable[[Accepted], Answer]


def inspect(file: BinaryIO, max_bytes: int) -> Upload:
    """Media type by content, size and sha256 of `file`, in one pass. EmptyFile, TooLarge, UnsupportedType."""
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
    return Upload(file, media_type, size, digest.hexdigest())


def accept(parts: Parts, order: Order, claim: Claim | None = None, *, tell: Tell | None = None) -> Accepted:
    """Make a durable job of the upload, or find the one that is wanted again.

    With a `claim`, its key stands for the job from the commit on; `tell` says what is answered, None when the answer
    is still open. Raises Invalid, Throttled, StorageFull, Unavailable or Conflict; then nothing is left behind.
    """
    if claim is not None and claim.job_id is not None:
        return together(parts.database, lambda session: _noted(session, _made_before(session, claim), tell))
    if order.caller.mode == TEST:
        rehearsal.check(order.wishes.external_id)
    if order.wishes.reuse:
        found = together(parts.database, lambda session: _found(session, parts, order, claim, tell), waits=True)
        if found is not None:
            return found
    ensure_room(parts.database, order.caller)
    return _made(parts, order, claim, tell)


def ensure_room(database: Database, caller: Caller, count: int = 1) -> None:
    """Throttled when `count` more jobs would exceed what the tenant may have waiting in the caller's mode.

    It is no lock: what is submitted at the same moment may exceed the cap together. Asks nothing where there is none.
    """
    cap = caller.queued_cap
    if not cap:
        return
    with reading(database) as session:
        found = Window(cap, used=session.scalars(_waiting(caller)).one(), reset_s=RETRY_AFTER_S)
    if found.used + count > cap:
        told = {"retry_after_s": found.reset_s, "headers": found.headers}
        raise Throttled(f"At most {cap} jobs may wait at a time.", code="queue_full", queued_cap=cap, **told)


def _waiting(caller: Caller) -> Select[int]:
    """How many jobs wait, up to the cap: no more rows than these are read, however many there are.

    A range of one status, and not the status alone: only the index of a tenant's states has that order. For the order
    of the ids, PostgreSQL would read the primary key and pass all that ended before it came to what waits.
    """
    mine = (Job.tenant_id == caller.tenant_id, Job.mode == caller.mode)
    waiting = select(Job.id).where(*mine, Job.status.between(ledger.QUEUED, ledger.QUEUED))
    counted = waiting.order_by(Job.status, Job.id).limit(caller.queued_cap).subquery()
    return select(func.count()).select_from(counted)


def _made(parts: Parts, order: Order, claim: Claim | None, tell: Tell | None) -> Accepted:
    """A new job: the blob first, then the row."""
    job_id, upload, wishes = jobs.new_id(), order.upload, order.wishes
    key = f"{order.caller.tenant_id}/{job_id}/input"
    parts.storage.put(key, upload.file, upload.media_type)

    def submit(session: Session) -> Accepted:
        deeds.record(session, "job.submitted", job_id, tenant_id=order.caller.tenant_id, **order.by)
        job = jobs.submit(
            session,
            parts.settings,
            tenant_id=order.caller.tenant_id,
            job_id=job_id,
            blob_key=key,
            media_type=upload.media_type,
            size=upload.size,
            sha256=upload.sha256,
            mode=order.caller.mode,
            **wishes.model_dump(exclude={"reuse"}),
        )
        view = views.view(session, job) if wishes.explain else views.view_of_new(job)
        return _noted(session, Accepted(Versioned(view, job.version), claim=claim), tell)

    try:
        return together(parts.database, submit)
    except HilumError:
        # Refused before the commit. After a commit of unknown outcome the blob must stay: a job may need it.
        with contextlib.suppress(HilumError):
            parts.storage.delete(key)
        raise


def _found(session: Session, parts: Parts, order: Order, claim: Claim | None, tell: Tell | None) -> Accepted | None:
    """The tenant's job of the same file, where there is one to reuse."""
    job = reuse.find(session, parts.settings, order.caller, order.by, order.upload.sha256, order.wishes.explain)
    if job is None:
        return None
    found = Accepted(Versioned(views.view(session, job), job.version), reused=True, claim=claim)
    return _noted(session, found, tell)


def _made_before(session: Session, claim: Claim) -> Accepted:
    """The job of an earlier request with this key, whose answer was lost."""
    job = views.get(session, claim.tenant_id, str(claim.job_id))
    return Accepted(Versioned(views.view(session, job), job.version), claim=claim)


def _noted(session: Session, made: Accepted, tell: Tell | None) -> Accepted:
    """Write it to the key in the transaction of the job: neither is ever there without the other."""
    if made.claim is not None:
        idempotency.note(session, made.claim, tell(made) if tell else None, job_id=made.job.view.id)
    return made
