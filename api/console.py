"""What several processes say, on one screen: a coloured prefix for each, and JSON lines made readable."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any, TextIO

COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)
RED, BOLD = 31, 1
ORDINARY = ("timestamp", "level", "event", "logger", "process", "exception")


@dataclass
class Console:
    """A stream that many threads write whole lines to; a reader that went away is no reason to stop."""

    out: TextIO
    colours: bool = False
    width: int = 7
    _codes: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, text: str = "", code: int | None = None) -> None:
        """Write `text` without a prefix, for the person who started us."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self.out.write(self._painted(text, code) + "\n")
            self.out.flush()

    def relay(self, name: str, line: str) -> None:
        """Write a line of the process `name`: as it is, or readable where a terminal shows it."""
        with self._lock:
            code = self._codes.setdefault(name, COLOURS[len(self._codes) % len(COLOURS)])
        prefix = self._painted(f"{name:<{self.width}} |", code)
        lines = readable(line) if self.colours else [line]
        self.say("\n".join(f"{prefix} {text}" for text in lines))

    def _painted(self, text: str, code: int | None) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and code is not None else text


def readable(line: str) -> list[str]:
    """A JSON log line as `21:04:05 event key=value`, an exception below it; any other line as it is."""
    fields = _fields(line)
    if fields is None:
        return [line]
    clock = str(fields.get("timestamp", ""))[11:19]
    level = str(fields.get("level", "info"))
    words = [clock, level.upper() if level in ("warning", "error", "critical") else "", str(fields["event"])]
    words += [f"{key}={value}" for key, value in fields.items() if key not in ORDINARY]
    return [" ".join(filter(None, words)), *str(fields.get("exception", "")).splitlines()]


def _fields(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    with contextlib.suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict) and "event" in fields:
            return fields
    return None
