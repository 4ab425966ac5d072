"""How far a film's features are from those of the training films: a Mahalanobis distance per network, summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussians:
    """The training features of one network: K Gaussians with one covariance, in a subspace.

    `mean` float32 [D]; `axes` float32 [P, D], along which features vary by one within the classes; `centres` float32
    [K, P], the classes' means there.
    """

    mean: np.ndarray
    axes: np.ndarray
    centres: np.ndarray


def scores(model: Sequence[Gaussians], features: Sequence[np.ndarray]) -> np.ndarray:
    """The distance float [N] of features [N, D] per network from the nearest class (Lee 2018), mean over networks."""
    return np.mean([distance(one, part) for one, part in zip(model, features, strict=True)], axis=0)


def distance(one: Gaussians, features: np.ndarray) -> np.ndarray:
    """The squared Mahalanobis distance float [N] of features [N, D] from the nearest centre, per axis."""
    placed = (features - one.mean) @ one.axes.T
    apart = placed[:, None] - one.centres
    return (apart**2).mean(axis=2).min(axis=1)
