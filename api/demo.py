"""`hilum demo`: a stranger's first minute. Starts everything, sends one radiograph over HTTP, shows what comes back."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from api import home as homes
from shared.settings import ROOT, Settings, environment

SAMPLE = ROOT / "docs" / "sample" / "synthetic-radiograph.png"
ARTIFACTS = ("input.png", "lungs.png", "gradcam.png")
START_S = 300.0
JOB_S = 300.0
POLL_S = 20  # seconds of one long poll
STOP_S = 30.0
PATIENCE_S = 8.0
BAR = 28
WIDTH = 110

Say = Callable[[str], None]
SAY: Say = partial(print, flush=True)


class NoDemo(Exception):
    """The demonstration did not work; the message says why."""


def demo(image: Path | None, out: Path, say: Say = SAY) -> int:
    """Show one radiograph's whole way; the exit code is 0 only when a diagnosis and its pictures came back."""
    image = image or SAMPLE
    try:
        if not image.is_file():
            raise NoDemo(f"there is no image at {image}")
        out.mkdir(parents=True, exist_ok=True)
        with _service(out, say) as (url, key):
            _show(url, key, image, out, say)
    except (NoDemo, httpx.HTTPError) as error:
        say(f"\nThe demo failed: {error or type(error).__name__}\nThe log of all processes: {out / 'up.log'}")
        return 1
    say(f"\nEverything is stopped again. `make up` starts the service and stays; the log: {out / 'up.log'}")
    return 0


@contextmanager
def _service(out: Path, say: Say) -> Iterator[tuple[str, str]]:
    """`hilum up` in a home of its own below `out`, on any free port: its URL, once it is ready, and a key."""
    home, key_file = (out / "home").resolve(), (out / "key").resolve()
    command = [sys.executable, "-m", "api.cli", "up", "--port", "0", "--key-file", str(key_file)]
    settings = Settings().model_copy(update={"home": home, "host": "127.0.0.1"})
    began = time.monotonic()
    say("Starting broker, API, workers and sweeper ...")
    with (out / "up.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment(settings), stdout=log, stderr=subprocess.STDOUT)
        try:
            url = _when_ready(process, home, out, say)
            say(f"  ready at {url} after {time.monotonic() - began:.1f} s\n")
            yield url, key_file.read_text("utf-8").strip()
        finally:
            _end(process)


def _when_ready(process: subprocess.Popen[bytes], home: Path, out: Path, say: Say) -> str:
    began, told = time.monotonic(), False
    while time.monotonic() < began + START_S:
        if process.poll() is not None:
            last = "\n".join(f"  {line}" for line in (out / "up.log").read_text("utf-8").splitlines()[-12:])
            raise NoDemo(f"the service ended with code {process.returncode}:\n{last}")
        known = homes.state(home)
        if known.get("pid") == process.pid and known.get("ready"):
            return str(known["url"])
        if not told and time.monotonic() > began + PATIENCE_S:
            told = True
            say("  the first start compiles the networks for this machine, which takes a while, once ...")
        time.sleep(0.1)
    raise NoDemo(f"the service was not ready within {START_S:g} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _show(url: str, key: str, image: Path, out: Path, say: Say) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=POLL_S + 10) as client:
        say(f"POST /v1/jobs  {image.name}, {image.stat().st_size / 1024:.0f} KiB")
        began = time.monotonic()
        files, fields = {"file": (image.name, image.read_bytes())}, {"explain": "gradcam"}
        answer = _good(client.post("/v1/jobs", files=files, data=fields))
        accepted = f"{answer.status_code} accepted and durable: {answer.headers['location']}"
        say(f"  {time.monotonic() - began:6.2f} s  {accepted}")
        job = _followed(client, answer, began, say)
        _report(job, say)
        _fetched(client, job, out, say)


def _followed(client: httpx.Client, answer: httpx.Response, began: float, say: Say) -> dict[str, Any]:
    """The job once it and its explanation have ended; each change is said as it is seen."""
    told: set[str] = set()
    while time.monotonic() < began + JOB_S:
        job = answer.json()
        for news in _news(job):
            if news not in told:
                told.add(news)
                say(f"  {time.monotonic() - began:6.2f} s  {news}")
        if _over(job):
            return job
        held = {"If-None-Match": answer.headers["etag"]}
        later = client.get(f"/v1/jobs/{job['id']}", params={"wait": POLL_S}, headers=held)
        answer = answer if later.status_code == 304 else _good(later)
    raise NoDemo(f"the job did not end within {JOB_S:g} s; it stands at {job['status']}")


def _news(job: dict[str, Any]) -> list[str]:
    """What there is to say about this state of the job, in order."""
    news = ["queued" if job["status"] == "queued" else ""]
    if job["status"] == "running":
        news.append(f"running: {job['stage']}" if job["stage"] else "running")
    if job["status"] not in ("queued", "running"):
        news.append(f"{job['status']}: the diagnosis is durable" if job["result"] else job["status"])
    for method, explanation in job["explanations"].items():
        if explanation["status"] not in ("queued", "running"):
            news.append(f"explanation {method}: {explanation['status']}")
    return [one for one in news if one]


def _over(job: dict[str, Any]) -> bool:
    states = [job["status"], *(explanation["status"] for explanation in job["explanations"].values())]
    return not {"queued", "running"} & set(states)


def _report(job: dict[str, Any], say: Say) -> None:
    """The result as a block to read; NoDemo when there is none."""
    if job["result"] is None:
        why = job["error"] or job["reason"] or {"code": job["status"], "detail": ""}
        raise NoDemo(f"the job was {job['status']}: {why['code']}: {why['detail']}")
    result = job["result"]
    say(f"\n  {result['top_class']}  with confidence {result['confidence']:.3f}")
    say(f"  {'margin to the second':<24} {result['margin_top2']:.3f}")
    say(f"  {'disagreeing networks':<24} {result['model_disagreement']:.3f}")
    say(f"  {'uncertain':<24} {_uncertain(result)}")
    say(f"  {'cannot be excluded':<24} {', '.join(result['prediction_set'])} (at {result['coverage']:.0%} coverage)")
    say(f"  {'bundle':<24} {result['bundle']}")
    runtime = result["runtime"]
    where = f"{runtime['name']} on {runtime['device']}, {runtime['precision']}, {runtime['threads']} threads"
    say(f"  {'computed by':<24} {where}\n")
    _table(result, say)
    say("")
    _wrapped("quality", [f"{name} {value:.3g}" for name, value in result["quality"].items()], say)
    _wrapped("stages", [f"{stage['name']} at {stage['started_s']:.2f} s" for stage in result["stages"]], say)
    say(f"\n  {result['disclaimer']}\n")


def _uncertain(result: dict[str, Any]) -> str:
    return f"yes, because of {', '.join(result['uncertain_because'])}" if result["uncertain"] else "no"


def _table(result: dict[str, Any], say: Say) -> None:
    """Probabilities: a class per line, the ensemble's with a bar, then each network's."""
    networks = list(result["per_model"])
    say(f"  {'':<16} {'ensemble':<{BAR + 7}} " + " ".join(f"{name:>15}" for name in networks))
    for code in result["classes"]:
        p = result["ensemble"][code]
        bar = "█" * round(p * BAR)
        each = " ".join(f"{result['per_model'][name][code]:>15.3f}" for name in networks)
        say(f"  {code:<16} {p:.3f} {bar:<{BAR + 1}} {each}")


def _wrapped(title: str, parts: list[str], say: Say) -> None:
    first, rest = f"  {title:<16} ", " " * 19
    say(textwrap.fill(", ".join(parts), WIDTH, initial_indent=first, subsequent_indent=rest))


def _fetched(client: httpx.Client, job: dict[str, Any], out: Path, say: Say) -> None:
    """Download the pictures; NoDemo names one that is missing."""
    missing = [name for name in ARTIFACTS if name not in job["artifacts"]]
    if missing:
        raise NoDemo(f"the job left no {', '.join(missing)}")
    for name in ARTIFACTS:
        path = out / name
        path.write_bytes(_good(client.get(job["artifacts"][name])).content)
        say(f"  {path}")


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        raise NoDemo(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:500]}")
    return answer
