"""The verdict: what the outside has seen, laid beside what the API says in the end."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.load import drawn
from tests.chaos.plan import Plan
from tests.chaos.truth import STREAM, Truth

TERMINAL = ("succeeded", "failed", "rejected", "canceled")
RECOVERY_S = 15.0
POLL_S = 1.0
SHOWN = 10


@dataclass(frozen=True)
class Verdict:
    """The figures of one run of `asked` uploads; `wrong` tells what became of one that it does not deserve."""

    asked: int
    accepted: int
    finished: int
    lost: int
    duplicated: int
    stuck: int
    owed: int
    delivered: int
    repeated: int
    recoveries_s: tuple[float, ...]
    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=(), repr=False)

    @property
    def events_lost(self) -> int:
        """Events that a receiver or the stream should have got, and did not."""
        return self.owed - self.delivered

    @property
    def recovery_median_s(self) -> float:
        """From the kill of a worker to the next claim of its row."""
        return statistics.median(self.recoveries_s) if self.recoveries_s else 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, duplicated or answered wrongly; how long it took is another question."""
        lost = self.lost + self.duplicated + self.stuck + self.events_lost + len(self.wrong)
        return lost == 0 and self.asked == self.accepted == self.finished

    @property
    def kept(self) -> bool:
        """Whether the bar holds."""
        return self.sound and self.recovery_median_s < RECOVERY_S

    @property
    def line(self) -> str:
        """The last line of a run."""
        figures = ("accepted", "finished", "lost", "duplicated", "stuck", "events_lost")
        said = " ".join(f"{name}={getattr(self, name)}" for name in figures)
        return f"{said} recovery_median_s={self.recovery_median_s:.2f}"


Jobs = dict[str, dict[str, Any]]


def wait(truth: Truth, client: httpx.Client, receivers: Sequence[str], deadline: float) -> Jobs:
    """Every job as the API shows it once all have ended and all is delivered, or at the deadline (monotonic, s)."""
    jobs: Jobs = {}
    while time.monotonic() < deadline:
        if not truth.open():
            jobs = everything(client)
            if not any(_unfinished(job) for job in jobs.values()) and not missing(truth, jobs, receivers):
                return jobs
        time.sleep(POLL_S)
    return everything(client)


def judge(
    plan: Plan, truth: Truth, jobs: Jobs, receivers: Sequence[str], recoveries_s: Sequence[float], poisoned: set[int]
) -> Verdict:
    """The figures of a run whose jobs are, in the end, `jobs`."""
    accepted = {number: jobs.get(job_id) for number, job_id in truth.accepted.items()}
    for job in jobs.values():
        if job["status"] in TERMINAL:
            truth.answer(job)
    jobs_of = Counter(job["external_id"] for job in jobs.values())
    lost = sum(job is None for job in accepted.values())
    stuck = sum(job is not None and _unfinished(job) for job in accepted.values())
    gone = missing(truth, jobs, receivers)
    owed = sum(1 for job in jobs.values() for _ in _owed(job)) * (len(receivers) + 1)
    return Verdict(
        asked=plan.jobs,
        accepted=len(accepted),
        finished=len(accepted) - lost - stuck,
        lost=lost,
        duplicated=sum(truth.duplicated(number) or jobs_of[drawn(plan, number).key] > 1 for number in accepted),
        stuck=stuck,
        owed=owed,
        delivered=owed - len(gone),
        repeated=truth.repeated(),
        recoveries_s=tuple(recoveries_s),
        wrong=(*truth.refused, *_strange(plan, jobs), *_wrong(plan, accepted, poisoned)),
        missing=tuple(gone),
    )


def everything(client: httpx.Client) -> Jobs:
    """Every job of the tenant, page by page."""
    jobs: Jobs = {}
    cursor = ""
    while True:
        answer = client.get("/v1/jobs", params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
        answer.raise_for_status()
        page = answer.json()
        jobs |= {job["id"]: job for job in page["jobs"]}
        cursor = page["next_cursor"]
        if not cursor:
            return jobs


def missing(truth: Truth, jobs: Jobs, receivers: Sequence[str]) -> list[str]:
    """Every event that is owed to a receiver or to the stream and was not seen there."""
    owed = [event for job in jobs.values() for event in _owed(job)]
    return [
        f"{source}: {' '.join(event)}"
        for source in (STREAM, *receivers)
        for event in owed
        if event not in truth.seen[source]
    ]


def _owed(job: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The events that a job must have caused, by what it is in the end."""
    if job["status"] in TERMINAL:
        yield f"job.{job['status']}", job["id"], ""
    for method, explanation in (job.get("explanations") or {}).items():
        if explanation["status"] in ("succeeded", "failed"):
            yield f"explanation.{explanation['status']}", job["id"], method


def _unfinished(job: dict[str, Any]) -> bool:
    explanations = (job.get("explanations") or {}).values()
    return job["status"] not in TERMINAL or any(one["status"] in ("queued", "running") for one in explanations)


def _strange(plan: Plan, jobs: Jobs) -> Iterator[str]:
    """Jobs that no upload of the run made."""
    keys = {drawn(plan, number).key for number in range(plan.jobs)}
    for job in jobs.values():
        if job["external_id"] not in keys:
            yield f"{job['id']}: of no upload"


def _wrong(plan: Plan, accepted: dict[int, dict[str, Any] | None], poisoned: set[int]) -> Iterator[str]:
    """Jobs that ended otherwise than they deserve: what the service suffers is no reason to fail a good film."""
    for number, job in accepted.items():
        if job is None or job["status"] not in TERMINAL:
            continue
        order = drawn(plan, number)
        deserved = {"failed": "worker_lost"} if number in poisoned else {"succeeded": None}
        if order.cancel and number not in poisoned:
            deserved["canceled"] = None
        code = (job.get("error") or job.get("reason") or {}).get("code")
        if job["external_id"] != order.key:
            yield f"upload {number}: {job['id']} is the job of {job['external_id']}"
        if job["status"] not in deserved or code != deserved[job["status"]]:
            yield f"upload {number}: {job['id']} {job['status']} {code}"
        explained = {method: one["status"] for method, one in (job.get("explanations") or {}).items()}
        if job["status"] == "succeeded" and explained != ({"gradcam": "succeeded"} if order.explain else {}):
            yield f"upload {number}: {job['id']} explanations {explained}"
