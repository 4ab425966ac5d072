"""Bring the database of the settings to the newest schema."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from shared.settings import ROOT, Settings

INI = ROOT / "alembic.ini"


def migrate(settings: Settings) -> None:
    """Run every migration that has not run; several at once wait for each other on PostgreSQL."""
    config = Config(str(INI))
    config.attributes["settings"] = settings
    command.upgrade(config, "head")


def knows(revision: str) -> bool:
    """Whether this version can upgrade a database of that revision."""
    return revision in {known.revision for known in ScriptDirectory.from_config(Config(str(INI))).walk_revisions()}
