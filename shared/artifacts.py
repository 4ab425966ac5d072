"""Files that an analysis or an explanation left in storage, and the rows that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete
from sqlalchemy.orm import Session

from shared import ids
from shared.models import Artifact


@dataclass(frozen=True)
class Stored:
    """A file in storage: its name for clients, its key, its media type and its size in bytes."""

    name: str
    key: str
    media_type: str
    size: int


def key_of(tenant_id: str, job_id: str, attempt: int, name: str) -> str:
    """Where an attempt stores a file: attempts never write over each other."""
    return f"{tenant_id}/{job_id}/{attempt}/{name}"


def keep(
    session: Session, tenant_id: str, job_id: str, files: Sequence[Stored], explanation_id: str | None = None
) -> None:
    """Name `files` as the job's; those of the same name from an earlier explanation give way."""
    if not files:
        return
    names = [file.name for file in files]
    session.execute(delete(Artifact).where(Artifact.job_id == job_id, Artifact.name.in_(names)))
    session.add_all(
        Artifact(
            id=ids.new("art"),
            tenant_id=tenant_id,
            job_id=job_id,
            explanation_id=explanation_id,
            name=file.name,
            key=file.key,
            media_type=file.media_type,
            size=file.size,
        )
        for file in files
    )
    session.flush()
