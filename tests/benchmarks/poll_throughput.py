"""How many clients that ask whether their job has changed one API process answers."""

from __future__ import annotations

import sys

from shared import jobs, tenants
from shared.db import open_database, transaction
from tests.benchmarks.polls import Polls, seconds
from tests.benchmarks.result import About, Result, alternate, compared
from tests.benchmarks.server import databases
from tests.benchmarks.stage import Stage, hilum, serving, staged

JOBS = 200
ASKED = 4000
ROUNDS = 7
CONCURRENCY = 16

ABOUT = About(
    name="poll_throughput",
    unit="answers/s",
    means=f"`GET /v1/jobs/{{id}}` with a true `If-None-Match` (304), {CONCURRENCY} clients at once that ask in turn "
    f"for {JOBS} jobs, one API process, PostgreSQL: key, scope, one query by primary key and tenant, a log line.",
    baseline="a bare FastAPI application in a uvicorn process of its own, whose route selects the same two columns of "
    "the same rows by primary key through SQLAlchemy as it comes, with a transaction around the statement (ours reads "
    "without one), and checks and logs nothing",
    at_least=0.7,
)


def run() -> Result:
    """Alternate rounds of questions to the bare application and to ours; both serve all the time."""
    with databases("hilum") as (url,), staged(database_url=url) as stage:
        job_ids = _submitted(stage)
        home = stage.settings.home
        bare = [sys.executable, "-m", "tests.benchmarks.bare_select"]
        with (
            serving(home / "bare.log", bare, stage.settings) as bare_port,
            serving(home / "api.log", hilum("api"), stage.settings) as port,
        ):
            asked = {"Authorization": f"Bearer {stage.key}", "If-None-Match": '"1"'}
            plain = Polls(bare_port, [f"/jobs/{one}" for one in job_ids], {}, 200, ASKED, CONCURRENCY)
            ours = Polls(port, [f"/v1/jobs/{one}" for one in job_ids], asked, 304, ASKED, CONCURRENCY)
            baseline, measured = alternate(lambda: ASKED / seconds(plain), lambda: ASKED / seconds(ours), rounds=ROUNDS)
    return compared(ABOUT, measured, baseline)


def _submitted(stage: Stage) -> list[str]:
    """Jobs of the default tenant, whose rows no worker changes."""
    database = open_database(stage.settings)
    job_ids = [jobs.new_id() for _ in range(JOBS)]
    stored = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "0" * 64}
    with transaction(database) as session:
        tenant_id = tenants.default_id(session)
        for one in job_ids:
            jobs.submit(session, stage.settings, tenant_id=tenant_id, job_id=one, **stored)
    database.engine.dispose()
    return job_ids
