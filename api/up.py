"""`hilum up`: broker, API, workers and sweeper as child processes of one, in one home, on one port."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

from api import address, broker, home, keyfile, supervisor
from api.console import BOLD, RED, Console
from api.migrate import migrate
from api.supervisor import Child, GaveUp, Program
from shared import bundles, tenants
from shared.db import open_database, transaction
from shared.errors import Unavailable
from shared.settings import Settings, environment

BROKER_TRIES = 3
BROKER_START_S = 20.0
READY_POLL_S = 0.25
COMPLAIN_S = 15.0  # the first start may have to compile the networks
TRY_IT = 'Try it: curl -H "Authorization: Bearer $KEY" -H "Prefer: wait=30" -F file=@film.png {url}/v1/jobs'
WORKER_STOP_S = 15.0


@dataclass
class Run:
    """One `hilum up`: what it was told, what it holds, and whether somebody wants it to end."""

    settings: Settings
    console: Console
    workers: int
    key_file: Path | None
    children: list[Child] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    signals: int = 0


def up(settings: Settings, *, workers: int, key_file: Path | None, out: TextIO = sys.stdout) -> int:
    """Serve until a signal; the exit code: 0 when it was asked to stop, 1 when a part would not stay alive.

    Raises Misconfigured when it cannot start: home in use, port taken, no bundle, no Redis.
    """
    console = Console(out, colours=out.isatty() and not settings.no_color)
    settings = settings.model_copy(update={"home": settings.home.resolve()})
    run = Run(settings, console, workers, key_file)
    bundles.read_manifest(settings.bundle)
    with home.only_one(settings.home), address.listening(settings) as listener, _signals(run):
        try:
            return _serve(run, listener)
        except GaveUp as error:
            console.say(f"\n{error}\nhilum up gives up.", RED)
            return 1
        finally:
            _stop(run)


def _serve(run: Run, listener: socket.socket) -> int:
    host, port = listener.getsockname()[:2]
    settings = run.settings.model_copy(update={"host": run.settings.host, "port": port})
    if address.is_loopback(host) and "legacy_open" not in settings.model_fields_set:
        settings = settings.model_copy(update={"legacy_open": True})
    settings = _with_broker(run, settings)
    if run.stopping.is_set():
        return 0
    migrate(settings)
    key = _first_key(run, settings)
    run.children += [supervisor.start(p, run.console) for p in _programs(settings, listener, run.workers)]
    _greet(run, settings, key)
    _tend_until_ready(run, settings)
    while not run.stopping.wait(supervisor.POLL_S):
        supervisor.tend(run.children, run.console)
    return 0


def _tend_until_ready(run: Run, settings: Settings) -> None:
    """Say when the service is ready, and from time to time what it still waits for."""
    url, complain_at = address.url_of(settings.host, settings.port), time.monotonic() + COMPLAIN_S
    while not run.stopping.wait(READY_POLL_S):
        supervisor.tend(run.children, run.console)
        missing = _missing(url)
        if missing is None:
            home.note(settings.home, url, ready=True)
            run.console.say(f"Ready: {url}", BOLD)
            return run.console.say(TRY_IT.format(url=url))
        if time.monotonic() > complain_at:
            run.console.say(f"Not ready yet: {missing}")
            complain_at = time.monotonic() + COMPLAIN_S
    return None


def _programs(settings: Settings, listener: socket.socket, workers: int) -> list[Program]:
    env = {**environment(settings), "PYTHONUNBUFFERED": "1"}
    hilum = (sys.executable, "-m", "api.cli")
    fd = listener.fileno()
    analyze = ("worker", "--queues", "analyze", "--concurrency", str(workers))
    explain = ("worker", "--queues", "explain", "--concurrency", "1")
    deliver = ("worker", "--queues", "deliver", "--concurrency", "1")  # a slow receiver delays no explanation
    return [
        Program("api", (*hilum, "api", "--fd", str(fd)), env, fds=(fd,)),
        Program("worker", (*hilum, *analyze), env, stop_s=WORKER_STOP_S),
        Program("explain", (*hilum, *explain), env, stop_s=WORKER_STOP_S),
        Program("deliver", (*hilum, *deliver), env, stop_s=WORKER_STOP_S),
        Program("sweep", (*hilum, "sweep"), env),
    ]


def _with_broker(run: Run, settings: Settings) -> Settings:
    """The settings with a broker that answers: the one they name, or one that is started here."""
    if settings.broker_url:
        if settings.broker_url.startswith("redis") and not broker.answers(settings.broker_url):
            run.console.say("The broker of REDIS_URL does not answer; until it does, jobs wait in the database.", RED)
        return settings
    broker.end_orphan(settings.home)
    last_words = ""
    for _ in range(BROKER_TRIES):
        own = broker.plan(settings.home, environment(settings))
        child = supervisor.start(own.program, run.console)
        if supervisor.wait_until(partial(broker.answers, own.url), [child], run.stopping, BROKER_START_S):
            run.children.append(child)
            return settings.model_copy(update={"broker_url": own.url})
        supervisor.stop([child], run.console)
        last_words = " / ".join(child.tail)
        if run.stopping.is_set():
            return settings
        if not broker.port_was_taken(child.tail):
            aside = broker.set_aside(settings.home)
            run.console.say(f"Redis did not start from its file, now in {aside}; no job is lost by that.", RED)
    raise Unavailable(f"Redis does not start: {last_words}")


def _first_key(run: Run, settings: Settings) -> str | None:
    """The key that the first start makes; None later. A key file always holds one that works."""
    database = open_database(settings)
    try:
        with transaction(database) as session:
            key = tenants.ensure_default(session)
            if run.key_file is not None:
                keyfile.keep(session, run.key_file, key)
    finally:
        database.engine.dispose()
    return key


def _greet(run: Run, settings: Settings, key: str | None) -> None:
    url = address.url_of(settings.host, settings.port)
    say = run.console.say
    home.note(settings.home, url, ready=False)
    say(f"Hilum starts on {url} (home {settings.home}); Ctrl-C stops it.", BOLD)
    if key and run.key_file:
        say(f"The API key of tenant `{tenants.DEFAULT}` lies in {run.key_file}.")
    elif key:
        say(f"The API key of tenant `{tenants.DEFAULT}`, shown this once (only its hash is kept): {key}", BOLD)
    else:
        say("The API key is the one that the first start showed; `hilum key create` makes another.")


def _missing(url: str) -> str | None:
    """What /readyz says is missing; None when nothing is."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5.0):
            return None
    except urllib.error.HTTPError as error:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(error.read())["detail"]
        return str(error)
    except OSError:
        return "the API does not answer"


def _stop(run: Run) -> None:
    """Everybody at once, but the broker last: workers that hand their rows back still ring."""
    if not run.children:
        return
    run.console.say("Stopping ...")
    others = [child for child in run.children if child.program.name != "broker"]
    brokers = [child for child in run.children if child.program.name == "broker"]
    for group in (others, brokers):
        supervisor.stop(group, run.console, at_once=lambda: run.signals > 1)
    home.forget(run.settings.home)
    run.console.say("Stopped.")


@contextlib.contextmanager
def _signals(run: Run) -> Iterator[None]:
    """The first signal asks for an orderly stop; the second kills what is left of it."""

    def asked(number: int, _: object) -> None:
        run.signals += 1
        run.stopping.set()

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
