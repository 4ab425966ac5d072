"""Test jobs, played without a worker: a magic name in `external_id` says which end each comes to.

The name is what stands behind the last slash, without an extension, so that each file of a batch can have its own.

Nothing else about them is make-believe: they are claimed, settled and told of by the ledger and the outbox that live
jobs go through. They are never ready, so no worker can claim them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, literal_column, or_, select
from sqlalchemy.orm import Session

from shared import canned, explanations, jobs, ledger
from shared.artifacts import Stored, key_of
from shared.canned import Files
from shared.columns import Leased
from shared.db import Database, clock, reading, transaction
from shared.errors import Invalid
from shared.ledger import Claim
from shared.models import TEST, Explanation, Job
from shared.schemas import Status
from shared.storage import Storage

MAGIC = "test_"
AT_ONCE = 100
LONGEST_H = 24  # what stays queued or running until it is canceled is canceled after this
LEASE_S = LONGEST_H * 3600.0

_TEST: ColumnElement[str] = literal_column(f"'{TEST}'")


Table = type[Job] | type[Explanation]
End = Callable[..., None]  # of a session, a claim and `artifacts`: settles the claimed row


class Script(NamedTuple):
    """What becomes of a job and of its explanations; None: they stay queued. `files` are the job's own."""

    job: End | None
    explanation: End | None
    files: Files


def _failed(session: Session, claim: Claim, *, artifacts: Sequence[Stored], code: str) -> None:
    jobs.fail(session, claim, canned.FAILURES[code])


def _rejected(session: Session, claim: Claim, *, artifacts: Sequence[Stored], code: str) -> None:
    jobs.reject(session, claim, canned.REASONS[code], canned.BUNDLE, artifacts)


def _canceled(session: Session, claim: Claim, *, artifacts: Sequence[Stored]) -> None:
    jobs.stop(session, claim)


def _runs(session: Session, claim: Claim, *, artifacts: Sequence[Stored]) -> None:
    """It stays claimed, until it is canceled."""
    stage = {"stage": "networks"} if claim.table is Job else {}
    ledger.renew(session, claim, lease_s=LEASE_S, **stage)


def _explained(session: Session, claim: Claim, *, artifacts: Sequence[Stored]) -> None:
    said, _ = canned.explanation(session.get_one(Explanation, claim.id).method)  # type: ignore[arg-type]
    explanations.finish(session, claim, said, artifacts)


def _not_explained(session: Session, claim: Claim, *, artifacts: Sequence[Stored], code: str) -> None:
    explanations.fail(session, claim, canned.EXPLANATION_FAILURES[code])


_SUCCEEDS = partial(jobs.finish, analysis=canned.CERTAIN)
DEFAULT = Script(_SUCCEEDS, _explained, canned.FILES)
SCRIPTS = {
    "test_succeeded": DEFAULT,
    "test_uncertain": DEFAULT._replace(job=partial(jobs.finish, analysis=canned.UNCERTAIN)),
    "test_canceled": Script(_canceled, None, {}),
    "test_queued": Script(None, None, {}),
    "test_running": Script(_runs, None, {}),
    **{f"test_rejected_{code}": Script(partial(_rejected, code=code), None, {}) for code in canned.REASONS},
    **{f"test_failed_{code}": Script(partial(_failed, code=code), None, {}) for code in canned.FAILURES},
    "test_explanation_queued": DEFAULT._replace(explanation=None),
    "test_explanation_running": DEFAULT._replace(explanation=_runs),
    **{
        f"test_explanation_failed_{code}": DEFAULT._replace(explanation=partial(_not_explained, code=code))
        for code in canned.EXPLANATION_FAILURES
    },
}
PATTERNS = [name for name in SCRIPTS if "rejected" not in name and "failed" not in name]
PATTERNS += ["test_rejected_<code>", "test_failed_<code>", "test_explanation_failed_<code>"]


def check(external_id: str | None) -> None:
    """Invalid when the name of a test job looks like a magic one and is none: a typo must not look like success."""
    name = _name(external_id)
    if name.startswith(MAGIC) and name not in SCRIPTS:
        known = ", ".join(PATTERNS)
        raise Invalid(f"With a test key `external_id` may be {known}, or begin otherwise.", code="unknown_rehearsal")


def play(database: Database, storage: Storage) -> int:
    """Play the test jobs and explanations that wait, at most AT_ONCE of each, and end those that were canceled.

    Returns how many rows changed. Raises StorageFull or Unavailable; what is left is played the next time.
    """
    with reading(database) as session:
        waiting = session.execute(_waiting_jobs()).all()
    played = sum(_play_job(database, storage, row) for row in waiting)
    with reading(database) as session:
        waiting = session.execute(_waiting_explanations()).all()
        tables: tuple[Table, ...] = (Job, Explanation)
        stopped = [(table, row_id) for table in tables for row_id in session.scalars(_to_stop(table, clock(session)))]
    played += sum(_play_explanation(database, storage, row) for row in waiting)
    return played + sum(_stop(database, table, row_id) for table, row_id in stopped)


# ---------------------------------------------------------------- playing


def _play_job(database: Database, storage: Storage, row: Any) -> int:
    script = _script(row.external_id)
    assert script.job is not None  # those that stay were not chosen
    stored = _store(storage, row, row.id, script.files)
    with transaction(database) as session:
        return _end(session, Job, row.id, script.job, stored)


def _play_explanation(database: Database, storage: Storage, row: Any) -> int:
    script = _script(row.external_id)
    assert script.explanation is not None
    _, files = canned.explanation(row.method)
    stored = _store(storage, row, row.job_id, files if script.explanation is _explained else {})
    with transaction(database) as session:
        return _end(session, Explanation, row.id, script.explanation, stored)


def _end(session: Session, table: Table, row_id: str, end: End, stored: list[Stored]) -> int:
    """Claim the row, unless somebody canceled it meanwhile, and end it: both in this transaction."""
    chosen: Select[Any] = select(table.id).where(table.id == row_id, table.status == ledger.QUEUED)
    claims = ledger.claim_chosen(session, table, chosen, lease_s=LEASE_S)
    for claim in claims:
        end(session, claim, artifacts=stored)
    return len(claims)


def _stop(database: Database, table: Table, row_id: str) -> int:
    """End what was to be canceled, as its worker would, or what has stayed for too long."""
    with transaction(database) as session:
        found = session.get(table, row_id, with_for_update=True)
        if found is None or Status(found.status).terminal:
            return 0
        if found.status == Status.QUEUED:
            _cancel(session, found)
        else:
            claim = Claim(table, row_id, found.tenant_id, str(found.lease_token), found.attempt)
            (jobs if table is Job else explanations).stop(session, claim)
    return 1


def _cancel(session: Session, row: Leased) -> None:
    if isinstance(row, Explanation):
        explanations.cancel(session, row.tenant_id, row.job_id, row.method)  # type: ignore[arg-type]
    else:
        jobs.cancel(session, row.tenant_id, row.id)


def _script(external_id: str | None) -> Script:
    return SCRIPTS.get(_name(external_id), DEFAULT)


def _name(external_id: str | None) -> str:
    # `_other_than` is the same for the database; a test holds the two together.
    return (external_id or "").rsplit("/", 1)[-1].split(".", 1)[0]


def _store(storage: Storage, row: Any, job_id: str, files: Files) -> list[Stored]:
    """Before the transaction, as a worker does, and under the keys of the attempt that it is going to be."""
    stored = []
    for name, (data, media_type) in files.items():
        key = key_of(row.tenant_id, job_id, row.attempt + 1, name)
        storage.put(key, data, media_type)
        stored.append(Stored(name, key, media_type, len(data)))
    return stored


# ---------------------------------------------------------------- choosing


def _open(table: Table) -> ColumnElement[bool]:
    """As the partial indexes have it, word for word: SQLite proves nothing."""
    return (table.mode == _TEST) & table.status.in_([ledger.QUEUED, ledger.RUNNING])


def _other_than(name: str) -> ColumnElement[bool]:
    """Jobs whose `_name` is not that one: those that stay must not be all that is looked at.

    Compared, and not matched with LIKE, for which SQLite takes upper and lower case for the same.
    """
    given = func.coalesce(Job.external_id, "")
    folders = func.rtrim(given, func.replace(given, "/", ""))  # what is left without what stands behind the last slash
    last = func.substr(given, func.length(folders) + 1)
    return func.substr(last + ".", 1, len(name) + 1) != f"{name}."


def _waiting_jobs() -> Any:
    found = select(Job.id, Job.tenant_id, Job.attempt, Job.external_id)
    return (
        found.where(_open(Job), Job.status == ledger.QUEUED, _other_than("test_queued")).order_by(Job.id).limit(AT_ONCE)
    )


def _waiting_explanations() -> Any:
    row = Explanation
    asked = select(row.id, row.tenant_id, row.attempt, row.method, row.job_id, Job.external_id)
    found = asked.join(Job, Job.id == row.job_id)
    diagnosed = found.where(
        _open(Explanation), Explanation.status == ledger.QUEUED, Job.status == Status.SUCCEEDED.value
    )
    return diagnosed.where(_other_than("test_explanation_queued")).order_by(Explanation.id).limit(AT_ONCE)


def _to_stop(table: Table, now: datetime) -> Any:
    """What its owner canceled while it ran, and what was made too long ago."""
    old = table.created_at < now - timedelta(hours=LONGEST_H)
    canceled = (table.status == ledger.RUNNING) & table.cancel_requested
    return select(table.id).where(_open(table), or_(old, canceled)).order_by(table.id).limit(AT_ONCE)
