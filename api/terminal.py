"""What the operator's commands share: a session on the database of the settings, who types, how a moment looks."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from shared.db import open_database, reading, transaction
from shared.deeds import By
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


def typed_by() -> By:
    """Who the audit log names for what is done here: the user of this process, whatever the environment says."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a number that nobody gave a name
        name = str(os.getuid())
    return {"actor": f"cli:{name}"[:64]}


def when(moment: datetime | None) -> str:
    """A moment in UTC, to the second; a dash for none."""
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-"
