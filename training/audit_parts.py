"""What a classifier sees of a film, taken apart: without the lungs, the background alone, the lungs' outline alone.

The classifiers see the square around the lungs, standardised inside the grown lung mask and zero elsewhere. Each part
is such a tensor float32 [S, S] of the same film, and holds less of it:

- `lungs_removed`: the found lungs become zero, everything else stays as the classifier gets it. What stays is the rim
  by which the mask was grown (2 % of the side: chest wall, heart border, diaphragm), on the lungs' own scale.
- `background_only`: the complement. Zero inside the grown mask, and outside, where serving puts zeros, the film: with
  mean 0 and deviation 1 there, cut at the clip. The hole still has the lungs' shape.
- `silhouette_only`: the grown mask filled with the mean of the training films' lungs, standardised inside it as every
  tensor is. The outline is all that is left of the film. A constant would do the same, but no network has seen a flat
  lung: its answer would tell of that, not of the outline.
"""

from __future__ import annotations

import numpy as np

from shared.bundles import Preprocessing
from worker.pipeline import lungs
from worker.pipeline.analyze import Prepared

PARTS = ("lungs_removed", "background_only", "silhouette_only")
LEAST_DEVIATION = 1e-3


def parts(film: Prepared, typical: np.ndarray, preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """The PARTS of one film by name, float32 [S, S]; `typical` float32 [S, S] is the mean of training lungs."""
    size, clip, box = preprocessing.input_size, preprocessing.clip, film.lungs.box
    seen = film.tensor != 0
    crop = lungs.resize(lungs.cut(film.radiograph.pixels, box), size)
    outside = lungs.resize_inside(film.radiograph.pixels.shape, box, size) & ~seen
    rim = np.where(lungs_in_crop(film, size) >= 0.5, np.float32(0), film.tensor)
    made = (rim, standardised(crop, outside, clip), standardised(typical, seen, clip))
    return dict(zip(PARTS, made, strict=True))


def lungs_in_crop(film: Prepared, size: int) -> np.ndarray:
    """The share of each cell of the lungs' crop that is lung, float32 [size, size] in 0..1; the mask is not grown."""
    return lungs.resize(lungs.cut(film.lungs.mask.astype(np.float32), film.lungs.box), size)


def standardised(values: np.ndarray, where: np.ndarray, clip: float) -> np.ndarray:
    """`values` float32 [S, S] with mean 0 and deviation 1 `where` bool [S, S], cut at +-clip; zero elsewhere."""
    if not where.any():
        return np.zeros(values.shape, dtype=np.float32)
    inside = values[where]
    normal = (values - inside.mean()) / max(float(inside.std()), LEAST_DEVIATION)
    return np.where(where, np.clip(normal, -clip, clip), 0.0).astype(np.float32)


def typical_lungs(tensors: np.ndarray, clip: float) -> np.ndarray:
    """The mean, where there is lung, of int8 [N, S, S] prepared tensors: float32 [S, S]; zero where none has lung."""
    total = tensors.sum(axis=0, dtype=np.int64) * (clip / 127)
    return (total / np.maximum((tensors != 0).sum(axis=0), 1)).astype(np.float32)
