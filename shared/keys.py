"""API keys: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from shared.models import LIVE, TEST

PREFIXES = {LIVE: "hlm_", TEST: "hlm_test_"}
SHOWN = 6  # characters after the prefix that lists may show


class Made(NamedTuple):
    """A new key in full, the part of it that lists may show, and the digest that is stored."""

    key: str
    prefix: str
    digest: str


def make(mode: str = LIVE) -> Made:
    """A key of 256 random bits; how it begins tells a test key from one that opens patients' data."""
    prefix = PREFIXES[mode]
    key = prefix + secrets.token_urlsafe(32)
    return Made(key, key[: len(prefix) + SHOWN], digest(key))


def digest(key: str) -> str:
    """The sha256 of a key in hex: enough for 256 random bits, which no dictionary holds."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
