"""GET /v1/models: the bundle that answers, with its classes, metrics, checksum and intended use."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from api.deps import PartsDep, ReaderDep
from api.problems import documented
from shared import bundles, errors
from shared.bundles import Bundle
from shared.schemas import DISCLAIMER, Frozen

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelView(Frozen):
    """The active bundle as a client sees it."""

    name: str
    version: str
    identity: str = Field(description="name@version#sha256, as each job's `bundle` says it")
    sha256: str = Field(description="of the manifest, which holds the checksums of the weights")
    active: bool = True
    classes: list[str] = Field(description="in the order of the networks' outputs")
    networks: list[dict[str, str]]
    input_size: int = Field(description="side of the tensor in pixels")
    coverage: float = Field(description="stated coverage of the prediction sets, 0..1")
    metrics: dict[str, Any]
    intended_use: str
    licence: str
    created_at: datetime
    disclaimer: str = DISCLAIMER


class ModelList(Frozen):
    """Every bundle this server answers with."""

    models: list[ModelView]


@router.get(
    "",
    summary="The active model bundle",
    responses=documented(errors.Unauthenticated, errors.Forbidden, errors.BundleError),
)
def active(_: ReaderDep, parts: PartsDep) -> ModelList:
    """The bundle that the settings name, read from its manifest."""
    return ModelList(models=[_view(bundles.read_manifest(parts.settings.bundle))])


def _view(bundle: Bundle) -> ModelView:
    manifest = bundle.manifest
    return ModelView(
        name=manifest.name,
        version=manifest.version,
        identity=bundle.identity,
        sha256=bundle.sha256,
        classes=manifest.classes,
        networks=[
            {"name": n.name, "architecture": n.architecture, "head": n.head, "sha256": n.sha256}
            for n in manifest.networks
        ],
        input_size=manifest.preprocessing.input_size,
        coverage=manifest.calibration.coverage,
        metrics=manifest.metrics,
        intended_use=manifest.intended_use,
        licence=manifest.licence,
        created_at=manifest.created_at,
    )
