"""Identifiers: a prefix that names the kind, and a ULID, which sorts by the time it was made."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ulid import ULID

EPOCH = datetime.fromtimestamp(0, UTC)
PATTERN = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")


def new(prefix: str) -> str:
    """A new id such as `job_01JDJ5W1M0QZ8N4T7X2B9C3D6F`."""
    return f"{prefix}_{ULID()}"


def earliest(prefix: str, moment: datetime) -> str:
    """The lowest id that can have been made at `moment`: every id that sorts before it is older."""
    return f"{prefix}_{ULID(ULID.from_datetime(max(moment, EPOCH)).bytes[:6] + bytes(10))}"


def made_at(made: str) -> datetime:
    """When an id was made; ValueError when it is none."""
    if not PATTERN.fullmatch(made):
        raise ValueError("not an id")
    return ULID.from_str(made[4:]).datetime
