"""What a million rows cost those who submit and those who claim."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from api.migrate import migrate
from shared import jobs, ledger, tenants
from shared.db import Database, open_database, transaction
from shared.models import Job
from shared.settings import Settings
from tests.benchmarks.result import About, Result, compared
from tests.benchmarks.server import databases

SMALL, LARGE = 1_000, 1_000_000
QUEUED_SHARE = 10  # one row in so many waits
OPERATIONS = 300  # of each kind in a round
WARM_UP, ROUNDS = 1, 5
LEASE_S = 3600.0
EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF)"

_WHERE = f"{LARGE:,} job rows, one in {QUEUED_SHARE} of them queued (PostgreSQL, every commit flushed to the disk)"
_BASELINE = f"the same with {SMALL:,} job rows, in a database of its own on the same server"

ABOUT = About(
    name="flat_cost",
    unit="ms per job",
    means=f"Median time to submit one job with {_WHERE}: `jobs.submit` and its commit.",
    baseline=_BASELINE,
    at_most=1.3,
)
CLAIM = About(
    name="flat_cost_claim",
    unit="ms per job",
    means=f"Median time to claim the one that is due first with {_WHERE}: `ledger.claim_next` and its commit.",
    baseline=_BASELINE,
    at_most=1.3,
    again="make bench B=flat_cost",
)
ALSO = (CLAIM,)

FILL = """
INSERT INTO jobs (id, tenant_id, status, due_at, ready_at, created_at, finished_at, attempt, losses, cancel_requested,
                  version, mode, priority, metadata, blob_key, media_type, size, sha256)
SELECT 'job_' || lpad(i::text, 26, '0'), :tenant, CASE WHEN i % :share = 0 THEN 'queued' ELSE 'succeeded' END,
       now() - interval '1 day' + i * interval '1 ms', now() - interval '1 day', now() - interval '1 day',
       CASE WHEN i % :share = 0 THEN NULL ELSE now() END, 0, 0, false,
       1, 'live', 'routine', '{}', 'blob', 'image/png', 1, md5(i::text) || md5(i::text)
FROM generate_series(1, :rows) AS i
"""


@dataclass(frozen=True)
class Shop:
    """A database with many jobs."""

    database: Database
    settings: Settings
    tenant_id: str

    def submit(self, session: Session) -> None:
        """One more job that waits."""
        jobs.submit(
            session,
            self.settings,
            tenant_id=self.tenant_id,
            job_id=jobs.new_id(),
            blob_key="blob",
            media_type="image/png",
            size=1,
            sha256="0" * 64,
        )

    def claim(self, session: Session) -> None:
        """One job less that waits."""
        assert len(ledger.claim_next(session, Job, 1, lease_s=LEASE_S)) == 1


Act = Callable[[Shop, Session], None]
_ACTS = ((ABOUT, Shop.submit), (CLAIM, Shop.claim))


def run() -> list[Result]:
    """Alternate between the small and the large database, first those who submit, then those who claim."""
    with databases("small", "large") as (small_url, large_url), _filled(small_url, SMALL) as small:
        print(f"  filling {LARGE:,} rows ...", flush=True)
        with _filled(large_url, LARGE) as large:
            return [replace(_compared(about, small, large, act), detail=_plan(large, act)) for about, act in _ACTS]


def _compared(about: About, small: Shop, large: Shop, act: Act) -> Result:
    """Rounds in which every other operation is the large database's: whatever else happens hits both alike."""
    rounds = []
    for number in range(WARM_UP + ROUNDS):
        pairs = [(_ms(act, small), _ms(act, large)) for _ in range(OPERATIONS)]
        baseline, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"  round {number}: {baseline:.4g}, {ours:.4g}", flush=True)
        rounds.append((baseline, ours))
    baselines, values = zip(*rounds[WARM_UP:], strict=True)
    return compared(about, values, baselines)


def _ms(act: Act, shop: Shop) -> float:
    began = time.perf_counter()
    with transaction(shop.database) as session:
        act(shop, session)
    return (time.perf_counter() - began) * 1e3


@contextmanager
def _filled(url: str, rows: int) -> Iterator[Shop]:
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), database_url=url)
        migrate(settings)
        database = open_database(settings)
        with transaction(database) as session:
            tenant_id = tenants.create(session, "benchmark").id
            session.execute(text(FILL), {"tenant": tenant_id, "share": QUEUED_SHARE, "rows": rows})
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
        yield Shop(database, settings, tenant_id)
        database.engine.dispose()


def _plan(shop: Shop, act: Act) -> list[str]:
    """How PostgreSQL carries out an act, with what it really did; nothing of it stays."""
    said: list[str] = []
    with shop.database.writes() as session, _explained(session, said):
        act(shop, session)
        session.flush()
        session.rollback()
    return [f"How PostgreSQL does it ({EXPLAIN}):", *said]


@contextmanager
def _explained(session: Session, said: list[str]) -> Iterator[None]:
    """Explain, before it is carried out, every statement that the session sends about jobs."""
    engine = session.get_bind()
    busy = False

    def explain(connection: Any, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        nonlocal busy
        if busy or " jobs" not in statement:
            return
        busy = True
        with connection.begin_nested() as nested:
            rows = connection.exec_driver_sql(f"{EXPLAIN} {statement}", parameters)
            said.extend(row[0] for row in rows)
            nested.rollback()
        busy = False

    event.listen(engine, "before_cursor_execute", explain)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", explain)
