"""What the pipeline asks of a runtime: three calls on float32 arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shared.schemas import RuntimeView


@dataclass(frozen=True)
class Outputs:
    """What M networks say about N tensors and K classes.

    `logits` float32 [M, N, K]; `maps` float32 [M, N, K, h, w], whose mean over h and w plus the head's bias is the
    logit; `features` one float32 [N, D] per network, the pooled features before the head; `ood_scores` float [N], how
    far they are from those of the training films, where the bundle can tell.
    """

    logits: np.ndarray
    maps: np.ndarray
    features: tuple[np.ndarray, ...]
    ood_scores: np.ndarray | None = None


class Segmenter(Protocol):
    """A lungs network on one device."""

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        """Lung probability float32 [N, S, S] in 0..1 of standardised images float32 [N, 1, S, S]."""


class Predictor(Segmenter, Protocol):
    """The networks of one bundle on one device."""

    runtime: RuntimeView

    def view(self, tensors: np.ndarray) -> np.ndarray:
        """Logits float32 [N, 8] of the view network for standardised images float32 [N, 1, S, S], if there is one."""

    def classify(self, tensors: np.ndarray) -> Outputs:
        """The outputs of every classifier for masked lungs float32 [N, 1, 224, 224]."""
