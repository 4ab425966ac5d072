"""Who claimed what and when, written by the workers themselves outside of Hilum: a file per process.

A line is a letter (C: claimed, E: ended), the time in seconds, the row and the attempt. A worker that is killed leaves
claims without an end behind; how long they wait for the next claim, by whomever, is the recovery.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from shared.ledger import Claim


class Journal:
    """The writing end in one process and in those that it forks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: tuple[int, int] = (0, -1)

    def claimed(self, claim: Claim) -> None:
        """The claim is committed."""
        self._write("C", claim)

    def ended(self, claim: Claim) -> None:
        """The work on the claim is over, however it ended."""
        self._write("E", claim)

    def _write(self, letter: str, claim: Claim) -> None:
        pid, handle = self._open
        if pid != os.getpid():
            path = self._folder / name_of(psutil.Process())
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            self._open = os.getpid(), handle
        os.write(handle, f"{letter} {time.time():.6f} {claim.id} {claim.attempt}\n".encode())


@dataclass(frozen=True)
class Held:
    """A claim of one process."""

    row: str
    attempt: int
    at: float


def name_of(process: psutil.Process) -> str:
    """The file of a process; numbers come round again, so the time of its start belongs to it."""
    return f"{process.pid}-{process.create_time():.2f}"


def holding(folder: Path, name: str) -> list[Held]:
    """The claims of the process `name` whose work is not over."""
    open_claims: dict[tuple[str, int], Held] = {}
    for letter, at, row, attempt in _lines(folder / name):
        if letter == "C":
            open_claims[row, attempt] = Held(row, attempt, at)
        else:
            open_claims.pop((row, attempt), None)
    return list(open_claims.values())


def recoveries_s(folder: Path, kills: Iterable[tuple[float, Collection[Held]]]) -> list[float]:
    """Seconds from each kill to the next claim of each row that was held; rows that ended just before have none."""
    claims: dict[str, list[float]] = defaultdict(list)
    for path in folder.iterdir():
        for letter, at, row, _ in _lines(path):
            if letter == "C":
                claims[row].append(at)
    found = []
    for killed_at, held in kills:
        for one in held:
            later = [at for at in claims[one.row] if at > killed_at]
            found += [min(later) - killed_at] if later else []
    return found


def _lines(path: Path) -> Iterable[tuple[str, float, str, int]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        letter, at, row, attempt = line.split()
        yield letter, float(at), row, int(attempt)
