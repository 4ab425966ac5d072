"""A file that always holds a key that works, for scripts: readable by its owner alone, renewed when it is worthless."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.orm import Session

from shared import tenants
from shared.errors import Unauthenticated


def keep(session: Session, path: Path, key: str | None) -> None:
    """Write `key` to `path`; without one keep the key that is there, or make another if it opens nothing."""
    if key is None and _works(session, path):
        return
    key = key or tenants.create_key(session, tenants.default_id(session), name=path.name[:128])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(key + "\n")
    part.replace(path)


def _works(session: Session, path: Path) -> bool:
    try:
        tenants.authenticate(session, path.read_text("utf-8").strip())
    except (OSError, ValueError, Unauthenticated):
        return False
    return True
