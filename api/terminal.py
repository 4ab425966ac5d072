"""What the operator's commands share: a session on the database of the settings, how a moment looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from shared.db import open_database, reading, transaction
from shared.settings import Settings

TenantName = Annotated[str, typer.Option("--tenant", help="Name of the tenant.")]


@contextmanager
def reads() -> Iterator[Session]:
    """A session that only reads."""
    with reading(open_database(Settings())) as session:
        yield session


@contextmanager
def writes() -> Iterator[Session]:
    """A session whose transaction commits at the end."""
    with transaction(open_database(Settings())) as session:
        yield session


def when(moment: datetime | None) -> str:
    """A moment in UTC, to the second; a dash for none."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-"
