"""The home of one `hilum up`: held by one at a time, and what that one says of itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import Misconfigured

STATE = "up.json"
LOCK = "up.lock"


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel gives it back however this process ends."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)  # radiographs lie in it
    with (home / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            other = state(home)
            who = f" (pid {other['pid']}, {other['url']})" if {"pid", "url"} <= set(other) else ""
            raise Misconfigured(
                f"Hilum is up already in {home}{who}. Stop it first, or use another home: "
                "HILUM_HOME=/another/folder hilum up --port 0"
            ) from error
        forget(home)
        yield


def state(home: Path) -> dict[str, Any]:
    """What a running `hilum up` says of itself (pid, url, ready), or nothing."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((home / STATE).read_text("utf-8"))
    return {}


def note(home: Path, url: str, *, ready: bool) -> None:
    """Leave word for whoever asks where the service is: a second `hilum up`, the demo, a script."""
    part = home / f"{STATE}.part"
    part.write_text(json.dumps({"pid": os.getpid(), "url": url, "ready": ready}) + "\n", "utf-8")
    part.replace(home / STATE)


def forget(home: Path) -> None:
    """Nobody serves here any more."""
    with contextlib.suppress(OSError):
        (home / STATE).unlink()
