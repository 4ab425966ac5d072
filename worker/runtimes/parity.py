"""How far a runtime's answers are from the reference's, torch in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from shared.bundles import Bundle, Preprocessing
from worker.pipeline.analyze import prepare
from worker.pipeline.ensemble import mean, softmax
from worker.pipeline.lungs import segmentation_tensor
from worker.pipeline.predictor import Predictor


@dataclass(frozen=True)
class Parity:
    """The differences over a set of images.

    The worst shift of a probability of the vote, 0..1; the share of images with the same top class; the correlation of
    class maps, median and worst over images, networks and classes; the worst shift of a lung probability, 0..1.
    """

    images: int
    max_probability_shift: float
    argmax_agreement: float
    cam_correlation_median: float
    cam_correlation_min: float
    max_lungs_shift: float

    def as_dict(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def compare(
    reference: Predictor, other: Predictor, images: np.ndarray, lungs: np.ndarray, votes: Sequence[float] = ()
) -> Parity:
    """The parity of `other` on classifier inputs float32 [N, 1, S, S] and lungs inputs float32 [N, 1, s, s].

    Probabilities are those of the vote, in which each network has its share of `votes`.
    """
    theirs, ours = reference.classify(images), other.classify(images)
    p, q = (mean(softmax(said.logits).swapaxes(0, 1), votes) for said in (theirs, ours))
    correlations = _correlations(theirs.maps, ours.maps)
    return Parity(
        images=len(images),
        max_probability_shift=float(np.abs(p - q).max()),
        argmax_agreement=float((p.argmax(axis=1) == q.argmax(axis=1)).mean()),
        cam_correlation_median=float(np.median(correlations)),
        cam_correlation_min=float(correlations.min()),
        max_lungs_shift=float(np.abs(reference.segment(lungs) - other.segment(lungs)).max()),
    )


def of_files(bundle: Bundle, reference: Predictor, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs for `compare` from real radiographs; Rejected where one is none."""
    prepared = [prepare(path.read_bytes(), reference, bundle) for path in files]
    side = bundle.manifest.lungs.input_size
    films = [segmentation_tensor(one.radiograph.pixels, side) for one in prepared]
    return np.stack([one.tensor for one in prepared])[:, None], np.stack(films)[:, None]


def synthetic(bundle: Bundle, count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Drawn inputs for `compare`: lung-shaped clouds as the classifiers see them, films as the lungs network does."""
    rng = np.random.default_rng(seed)
    preprocessing, side = bundle.manifest.preprocessing, bundle.manifest.lungs.input_size
    images = np.stack([_lungs(rng, preprocessing) for _ in range(count)])
    films = np.stack([np.clip(_cloud(rng, side), -1.5, 1.5) for _ in range(count)])
    return images[:, None].astype(np.float32), films[:, None].astype(np.float32)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The correlation of each pair of grids in float32 [M, N, K, h, w]; a constant grid has none and is left out."""
    flat_a, flat_b = (x.reshape(-1, x.shape[-2] * x.shape[-1]).astype(np.float64) for x in (a, b))
    flat_a, flat_b = (x - x.mean(axis=1, keepdims=True) for x in (flat_a, flat_b))
    scale = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
    kept = scale > 1e-9
    return (flat_a * flat_b).sum(axis=1)[kept] / scale[kept]


def _lungs(rng: np.random.Generator, preprocessing: Preprocessing) -> np.ndarray:
    size = preprocessing.input_size
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = ((np.abs(columns) - 0.45) / 0.36) ** 2 + (rows / 0.85) ** 2 < 1
    cloud = _cloud(rng, size)
    normal = (cloud - cloud[inside].mean()) / cloud[inside].std()
    return np.where(inside, np.clip(normal, -preprocessing.clip, preprocessing.clip), 0.0)


def _cloud(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise with structure at several scales, deviation 1: [size, size]."""
    layers = [ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma) for sigma in (1, 4, 16)]
    return np.sum([layer / layer.std() for layer in layers], axis=0) / 3**0.5
