"""Path and query parameters that several routes share; an id of the wrong shape is simply not found."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Path, Query
from pydantic import AfterValidator

from shared.errors import NotFound

JOB_ID = re.compile(r"job_[0-9A-HJKMNP-TV-Z]{26}")
BATCH_ID = re.compile(r"bat_[0-9A-HJKMNP-TV-Z]{26}")
ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _job_id(value: str) -> str:
    if not JOB_ID.fullmatch(value):
        raise NotFound("There is no such job.")
    return value


def _batch_id(value: str) -> str:
    if not BATCH_ID.fullmatch(value):
        raise NotFound("There is no such batch.")
    return value


def _artifact(value: str) -> str:
    if not ARTIFACT.fullmatch(value):
        raise NotFound("There is no such artefact.")
    return value


JobId = Annotated[str, Path(examples=["job_01JDJ5W1M0QZ8N4T7X2B9C3D6F"]), AfterValidator(_job_id)]
BatchId = Annotated[str, Path(examples=["bat_01JDJ5W1M0QZ8N4T7X2B9C3D6F"]), AfterValidator(_batch_id)]
ArtifactName = Annotated[str, Path(examples=["gradcam.png"]), AfterValidator(_artifact)]
WaitSeconds = Annotated[
    float, Query(ge=0, allow_inf_nan=False, description="hold the answer up to this many seconds, at most 60")
]
