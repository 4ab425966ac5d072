"""The bundle: what training hands to serving; one folder, one manifest, every file under a checksum."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from shared.errors import BundleError
from shared.schemas import Frozen

MANIFEST = "manifest.json"


class WeightsFile(Frozen):
    """A safetensors file of the bundle and the sha256 of its bytes."""

    file: str = Field(pattern=r"^[a-z0-9_.-]+\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Network(WeightsFile):
    """One classifier of the ensemble."""

    name: str
    architecture: Literal["resnet50", "densenet121", "efficientnet_b0", "tiny"]
    head: Literal["linear"] = "linear"


class LungsNetwork(WeightsFile):
    """The segmentation network: input side in pixels, threshold on its probability."""

    architecture: Literal["unet"] = "unet"
    widths: list[int]
    input_size: int
    threshold: float


class ViewNetwork(WeightsFile):
    """The network that sees how a picture shows a chest, if it does: input side in pixels."""

    architecture: Literal["view"] = "view"
    widths: list[int]
    input_size: int


class OodModel(WeightsFile):
    """Where the networks' features of the training films lie: arrays by network, read by worker.pipeline.ood."""


class Preprocessing(Frozen):
    """How an image becomes a tensor; training and serving read the same values."""

    input_size: int = Field(224, description="side of the tensor in pixels")
    channels: Literal[1] = 1
    normalisation: Literal["zscore-in-mask"] = "zscore-in-mask"
    clip: float = Field(3.0, description="normalised values are cut to +-clip standard deviations")
    resize: Literal["bilinear-antialias"] = "bilinear-antialias"
    crop_margin: float = Field(0.05, description="margin around the lungs' box, as a share of its longer side")
    mask_dilation: float = Field(0.02, description="growth of the mask, as a share of the box's longer side")
    mask_policy: Literal["zero-outside"] = "zero-outside"


class Calibration(Frozen):
    """What the stop fold (`votes`) and the validation split decided.

    `votes` are the networks' shares in the mean, in their order, none where all count alike; `quantiles` are
    class-conditional conformal scores 1 - p.
    """

    votes: list[Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=list)
    temperature: float = 1.0
    min_confidence: float = 0.0
    min_margin: float = 0.0
    max_disagreement: float = 1.0
    unusual_ood_score: float | None = Field(None, description="above it an answer is uncertain; above the gate's, none")
    coverage: float = 0.9
    quantiles: dict[str, float] = Field(default_factory=dict)


class Manifest(Frozen):
    """Everything serving must know about a trained bundle."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: str
    classes: list[str] = Field(min_length=2)
    networks: list[Network] = Field(min_length=1)
    lungs: LungsNetwork
    view: ViewNetwork | None = None
    ood: OodModel | None = None
    preprocessing: Preprocessing
    calibration: Calibration
    quality: dict[str, float] = Field(description="limits of the quality gate by check")
    training_data: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    intended_use: str = ""
    licence: str
    created_at: datetime

    @property
    def files(self) -> list[WeightsFile]:
        """Every weights file that serving reads."""
        return [self.lungs, *self.networks, *(part for part in (self.view, self.ood) if part)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice")
        if len({n.name for n in self.networks}) != len(self.networks):
            raise ValueError("a network is named twice")
        unknown = set(self.calibration.quantiles) - set(self.classes)
        if unknown:
            raise ValueError(f"quantiles of unknown classes: {sorted(unknown)}")
        votes = self.calibration.votes
        if votes and (len(votes) != len(self.networks) or not math.isclose(sum(votes), 1, abs_tol=0.01)):
            raise ValueError("the votes are not one share per network, with a sum of 1")
        return self


class Bundle(Frozen):
    """A verified bundle: its folder, its manifest, and the sha256 of the manifest's bytes."""

    root: Path
    manifest: Manifest
    sha256: str

    @property
    def identity(self) -> str:
        """`name@version#sha256`, the first twelve digits of the manifest's checksum."""
        return f"{self.manifest.name}@{self.manifest.version}#{self.sha256[:12]}"

    def path(self, weights: WeightsFile) -> Path:
        """Where a weights file lies."""
        return self.root / weights.file


def read(root: Path) -> Bundle:
    """Read and verify the bundle in `root`: every field, every file, every checksum; BundleError otherwise."""
    bundle = read_manifest(root)
    for weights in bundle.manifest.files:
        _verify(bundle, weights)
    return bundle


def read_manifest(root: Path) -> Bundle:
    """Read the manifest alone, without its weights (the API needs no more); BundleError when it is malformed."""
    path = Path(root) / MANIFEST
    try:
        raw = path.read_bytes()
        manifest = Manifest.model_validate_json(raw)
    except OSError as error:
        raise BundleError(f"no bundle in {root}: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{path} is malformed: {error}") from error
    return Bundle(root=Path(root).resolve(), manifest=manifest, sha256=hashlib.sha256(raw).hexdigest())


def write(root: Path, manifest: Manifest) -> Bundle:
    """Write `manifest` into `root`, where its weights already lie, and read it back verified."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return read(root)


def checksum(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(bundle: Bundle, weights: WeightsFile) -> None:
    path = bundle.path(weights)
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    found = checksum(path)
    if found != weights.sha256:
        raise BundleError(f"{path} was altered: its sha256 is {found}, the manifest says {weights.sha256}")
