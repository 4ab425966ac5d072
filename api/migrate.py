"""Bring the database of the settings to the newest schema."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

from shared.settings import ROOT, Settings


def migrate(settings: Settings) -> None:
    """Run every migration that has not run; several at once wait for each other on PostgreSQL."""
    config = Config(str(ROOT / "alembic.ini"))
    config.attributes["settings"] = settings
    command.upgrade(config, "head")
