"""A process of Hilum with the harness's eyes and hands in it: `python -m tests.chaos.process worker ...`.

It is `hilum` itself, in which a few functions were wrapped before it starts: a poisoned file kills the process that
analyses it, every claim and its end are written into a journal outside of Hilum, and a run that shall turn red has one
of the ledger's safeguards taken out. Nothing of this exists in the service.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update

from api import cli
from shared import backlog, deliveries, explanations, jobs, ledger
from shared.db import clock, reading, transaction
from shared.ledger import Claim
from shared.schemas import Status
from tests.chaos.journal import Journal
from worker import analysis, loop
from worker.lease import Lease
from worker.parts import Parts

POISON = b"hilum-chaos-poison"
JOURNAL, SABOTAGE = "CHAOS_JOURNAL", "CHAOS_SABOTAGE"
HESITATIONS_S = (0.0, 1.0)  # between the look at a row and a claim that no longer compares: time to end it meanwhile


def main() -> None:
    """Wrap what is to be watched, take out what is to be missing, and be `hilum`."""
    journal = Journal(Path(os.environ[JOURNAL]))
    _poison()
    _watch(journal)
    SABOTAGES[os.environ.get(SABOTAGE, "")]()
    cli.main()


def _poison() -> None:
    """Let the analysis of a marked file end its process as the kernel would: at once, and without a word."""
    analyze = analysis.analyze

    def analyzed(data: bytes, *arguments: Any, **options: Any) -> Any:
        if POISON in data:
            os.kill(os.getpid(), signal.SIGKILL)
        return analyze(data, *arguments, **options)

    analysis.analyze = analyzed


def _watch(journal: Journal) -> None:
    """Write down each claim once it is committed, and its end."""
    end = loop._end

    def ended(rest: Callable[[], None], lease: Lease) -> None:
        try:
            end(rest, lease)
        finally:
            journal.ended(lease.claim)

    def watched(claimed: Callable[[Parts, str], list[Lease]]) -> Callable[[Parts, str], list[Lease]]:
        def claim(parts: Parts, bell: str) -> list[Lease]:
            leases = claimed(parts, bell)
            for lease in leases:
                journal.claimed(lease.claim)
            return leases

        return claim

    loop._end = ended
    loop._claimed = watched(loop._claimed)
    _watch.again = watched  # type: ignore[attr-defined]


def _nothing() -> None:
    """The service as it is."""


def _no_compare_and_set() -> None:
    """Claim what was queued a moment ago, whatever it is by now: ended, or another worker's."""

    def claimed(parts: Parts, bell: str) -> list[Lease]:
        table = backlog.TABLES[bell]
        with reading(parts.database) as session:
            seen = ledger.waiting(session, table, parts.settings.claim_batch)
        if not seen:
            return []
        time.sleep(random.choice(HESITATIONS_S))
        token = secrets.token_hex(8)
        with transaction(parts.database) as session:
            until = clock(session) + timedelta(seconds=parts.settings.lease_s)
            values = {"status": Status.RUNNING.value, "lease_token": token, "lease_until": until}
            statement = update(table).where(table.id.in_(seen)).values(attempt=table.attempt + 1, **values)
            rows = session.execute(statement.returning(table.id, table.tenant_id, table.attempt)).all()
        return [Lease(parts, Claim(table, row.id, row.tenant_id, token, row.attempt)).hold() for row in rows]

    loop._claimed = _watch.again(claimed)  # type: ignore[attr-defined]


def _no_fencing() -> None:
    """Let whoever once claimed a row write about it, without showing a token."""

    def held(claim: Claim) -> Any:
        mine = update(claim.table).where(claim.table.id == claim.id)
        return mine.execution_options(synchronize_session=False)

    ledger._held = held


def _no_sweeper() -> None:
    """Let the sweeper run without freeing what dead workers held."""
    for life in (jobs, explanations, deliveries):
        life.expire = lambda *_: ledger.Expired([], [], [])


SABOTAGES: dict[str, Callable[[], None]] = {
    "": _nothing,
    "compare-and-set": _no_compare_and_set,
    "fencing": _no_fencing,
    "sweeper": _no_sweeper,
}


if __name__ == "__main__":
    main()
