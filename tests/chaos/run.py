"""One run from its first process to its verdict."""

from __future__ import annotations

import queue
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from shared.bundles import Bundle
from tests.chaos import verdict
from tests.chaos.faults import Chaos
from tests.chaos.journal import recoveries_s
from tests.chaos.load import Load
from tests.chaos.plan import Plan, schedule
from tests.chaos.receivers import Receiver, receiving
from tests.chaos.stage import HANG_S, Stage, staged
from tests.chaos.stream import Stream
from tests.chaos.truth import Truth
from tests.chaos.verdict import Verdict
from tests.servers import until

RECEIVERS = ("here", "there")
AHEAD = 3  # the load may be so many faults ahead of the faults
STALLED_S = 60.0  # without any progress of the load for this long, the next fault is made all the same
TRIES = 5
SAY_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What came of a run: the verdict, the faults by kind, and processes that died without being killed.

    `missed` are the faults of the schedule that met nothing, however often they were tried.
    """

    verdict: Verdict
    faults: Counter[str]
    missed: Counter[str]
    died: tuple[str, ...]
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the bar holds: every fault was made, each kill was recovered from, and nothing was lost."""
        killed = self.faults["kill_child"] + self.faults["kill_tree"] > 0
        return self.verdict.kept and not self.missed and (not killed or bool(self.verdict.recoveries_s))


def run(plan: Plan, *, bundle: Bundle | None = None, cache: Path | None = None, loud: bool = True) -> Outcome:
    """Make the run that `plan` describes; brokers.Missing when a server of it is not installed."""
    began = time.monotonic()
    truth = Truth()
    with ExitStack() as held:
        folder = Path(
            held.enter_context(tempfile.TemporaryDirectory(prefix="hilum-chaos-", ignore_cleanup_errors=True))
        )
        receivers = [held.enter_context(receiving(name, truth, hang_s=2 * HANG_S)) for name in RECEIVERS]
        stage = held.enter_context(staged(plan, folder, bundle, cache))
        client = held.enter_context(_client(stage))
        _register(client, receivers)
        stream = Stream(stage.url, stage.key, truth)
        held.callback(stream.stop)
        stream.start()
        until(stream.connected.is_set, what="the event stream")
        _read_along(client, truth, held)
        load = Load(plan, stage.url, stage.key, truth)
        chaos = Chaos(stage, load, receivers, random.Random(f"{plan.seed}-faults"))
        load.start()
        _make_faults(plan, chaos, truth, began, loud)
        jobs = _ended(plan, chaos, truth, client)
        found = recoveries_s(stage.journal, chaos.kills)
        judged = verdict.judge(plan, truth, jobs, RECEIVERS, found, load.poisoned)
        _check_forgery(receivers)
        missed = Counter(schedule(plan)) - chaos.made
        outcome = Outcome(judged, chaos.made, missed, tuple(stage.died), time.monotonic() - began)
        if loud and not outcome.kept:
            _keep_logs(stage)
        return outcome


def _make_faults(plan: Plan, chaos: Chaos, truth: Truth, began: float, loud: bool) -> None:
    """Every fault of the schedule, spread over the load, so that each meets a service that works."""
    left = schedule(plan)
    total, done, said = len(left), 0, 0.0
    again: Counter[str] = Counter()
    while left and time.monotonic() < began + plan.limit_s:
        chaos.load.allow(chaos.load.usual * (done + AHEAD) // max(total, 1))
        _let_pass(chaos, truth, chaos.load.usual * done // total)
        kind = left.pop(0)
        if chaos.make(kind):
            done += 1
        elif again[kind] < TRIES * plan.faults:
            again[kind] += 1
            chaos.load.more()
            left.insert(chaos.draw.randrange(len(left) + 1), kind)
        if loud and time.monotonic() > said + SAY_S:
            said = time.monotonic()
            at = f"{said - began:.0f} s: {truth.count()} accepted, {truth.open()} open, {done} of {total} faults"
            print(at, flush=True)
    if not left:
        chaos.load.allow(plan.jobs)


def _let_pass(chaos: Chaos, truth: Truth, accepted: int) -> None:
    """Tend the service until so many uploads are accepted, or nothing moves any more."""
    seen, since = -1, time.monotonic()
    while (now := truth.count()) < accepted and time.monotonic() < since + STALLED_S:
        if now != seen:
            seen, since = now, time.monotonic()
        chaos.thaw()
        chaos.stage.tend()
        time.sleep(0.02)
    chaos.thaw()
    chaos.stage.tend()


def _ended(plan: Plan, chaos: Chaos, truth: Truth, client: httpx.Client) -> verdict.Jobs:
    """Let everything go on, and wait for the end of it, as long as the plan has patience."""
    finish = time.monotonic() + plan.grace_s
    while chaos.frozen and time.monotonic() < finish:
        _let_pass(chaos, truth, 0)
        time.sleep(0.05)
    chaos.thaw(all=True)
    last_fault = time.monotonic()
    waiting = threading.Thread(target=chaos.load.join, args=(plan.grace_s + plan.limit_s,), daemon=True)
    waiting.start()
    while waiting.is_alive() and time.monotonic() < max(last_fault, truth.last_s) + plan.grace_s:
        chaos.stage.tend()
        waiting.join(0.1)
    return verdict.wait(truth, client, RECEIVERS, max(last_fault, truth.last_s) + plan.grace_s)


def _register(client: httpx.Client, receivers: Sequence[Receiver]) -> None:
    for receiver in receivers:
        answer = client.post("/v1/webhooks", json={"url": receiver.url})
        assert answer.status_code == 201, answer.text
        receiver.secret = answer.json()["secret"]


def _read_along(client: httpx.Client, truth: Truth, held: ExitStack) -> None:
    """Read each job as soon as its end is heard of: what it says then it must say for ever."""
    ending = threading.Event()

    def read() -> None:
        while not ending.is_set():
            try:
                job_id = truth.to_read.get(timeout=0.2)
                job = client.get(f"/v1/jobs/{job_id}").json()
                if job.get("status") in verdict.TERMINAL:
                    truth.answer(job)
            except (httpx.HTTPError, ValueError, queue.Empty):
                continue

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    held.callback(thread.join, 10)
    held.callback(ending.set)


def _client(stage: Stage) -> httpx.Client:
    headers = {"Authorization": f"Bearer {stage.key}"}
    return httpx.Client(base_url=stage.url, headers=headers, timeout=30, trust_env=False)


def _check_forgery(receivers: Sequence[Receiver]) -> None:
    forged = {receiver.name: receiver.forged for receiver in receivers if receiver.forged}
    assert not forged, f"deliveries whose signature does not hold: {forged}"


def _keep_logs(stage: Stage) -> None:
    """A run that turned red leaves its processes' words behind."""
    kept = Path(tempfile.mkdtemp(prefix="hilum-chaos-logs-"))
    for log in (stage.settings.home / "logs").iterdir():
        (kept / log.name).write_bytes(log.read_bytes())
    print(f"the logs of this run: {kept}", flush=True)
