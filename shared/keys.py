"""API keys: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

PREFIX = "hlm_"
SHOWN = len(PREFIX) + 6


class Made(NamedTuple):
    """A new key in full, the part of it that lists may show, and the digest that is stored."""

    key: str
    prefix: str
    digest: str


def make() -> Made:
    """A key of 256 random bits."""
    key = PREFIX + secrets.token_urlsafe(32)
    return Made(key, key[:SHOWN], digest(key))


def digest(key: str) -> str:
    """The sha256 of a key in hex: enough for 256 random bits, which no dictionary holds."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
