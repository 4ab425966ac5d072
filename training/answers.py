"""What a stored bundle says about images, through the very path that serves: the ground of every figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.bundles import Bundle
from shared.errors import BundleError, Rejected
from shared.schemas import Analysis
from training.index import Item
from worker.pipeline.analyze import analyze
from worker.pipeline.ensemble import mean
from worker.pipeline.predictor import Predictor

LEAST_SPREAD = 1e-3  # deviation of a network's probabilities over different images


@dataclass(frozen=True)
class Answer:
    """One image: its analysis, or the code of the refusal."""

    item: Item
    analysis: Analysis | None
    refused: str = ""


@dataclass(frozen=True)
class Table:
    """Answers as arrays: labels int64 [N], together float64 [N, K]; untempered: the vote [N, K] and each [N, M, K]."""

    answers: list[Answer]
    labels: np.ndarray
    together: np.ndarray
    vote: np.ndarray
    each: np.ndarray


def ask(bundle: Bundle, predictor: Predictor, items: Iterable[Item], root: Path, title: str) -> list[Answer]:
    """The worker's own `analyze` on every image."""
    return [_one(bundle, predictor, item, root) for item in tqdm(list(items), title, mininterval=10)]


def table(bundle: Bundle, answers: list[Answer]) -> Table:
    """The answered images of known class as arrays; BundleError where a network says the same about every image."""
    classes = bundle.manifest.classes
    kept = [a for a in answers if a.analysis is not None and a.item.label in classes]
    if not kept:
        raise BundleError("the bundle refused every image")
    names = [network.name for network in bundle.manifest.networks]
    said = [a.analysis for a in kept if a.analysis is not None]
    together = np.array([[x.ensemble[c] for c in classes] for x in said])
    each = np.array([[[x.per_model[n][c] for c in classes] for n in names] for x in said])
    _must_vary(each, names)
    labels = np.array([classes.index(a.item.label) for a in kept])
    return Table(kept, labels, together, mean(each, bundle.manifest.calibration.votes), each)


def _must_vary(each: np.ndarray, names: list[str]) -> None:
    """A wrong head or a wrong input range shows as equal answers, which no checksum notices."""
    for name, spread in zip(names, each.std(axis=0).max(axis=-1), strict=True):
        if len(each) > 1 and not spread > LEAST_SPREAD:
            raise BundleError(f"{name} answers the same for every image")


def _one(bundle: Bundle, predictor: Predictor, item: Item, root: Path) -> Answer:
    try:
        return Answer(item, analyze((root / item.image).read_bytes(), predictor, bundle).analysis)
    except Rejected as error:
        return Answer(item, None, error.code)
