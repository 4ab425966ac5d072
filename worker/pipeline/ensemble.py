"""The vote of the networks: probabilities, their mean, its calibration, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.bundles import Calibration
from shared.errors import BundleError


@dataclass(frozen=True)
class Vote:
    """What M networks say about one image; probabilities float64 in class order of the manifest."""

    each: np.ndarray  # [M, K], before the temperature
    together: np.ndarray  # [K], calibrated
    top: int
    margin: float
    disagreement: float
    included: tuple[bool, ...]  # [K]: the prediction set
    reasons: tuple[str, ...]  # why it is uncertain; empty where it is not

    @property
    def confidence(self) -> float:
        """The calibrated probability of the top class."""
        return float(self.together[self.top])


def vote(logits: np.ndarray, classes: list[str], calibration: Calibration) -> Vote:
    """The vote on logits float32 [M, K]; BundleError where their shape or values cannot be of these classes."""
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise BundleError(f"logits of shape {logits.shape} for {len(classes)} classes")
    if not np.isfinite(logits).all():
        raise BundleError("a network answers with values that are no numbers")
    each = softmax(logits)
    together = tempered(mean(each, calibration.votes), calibration.temperature)
    order = np.argsort(together)[::-1]
    top, second = int(order[0]), int(order[1])
    margin = float(together[top] - together[second])
    disagreement = float((each.argmax(axis=1) != top).mean())
    included = tuple(
        bool(1 - p <= calibration.quantiles.get(name, 1.0)) for name, p in zip(classes, together, strict=True)
    )
    reasons = _doubts(float(together[top]), margin, disagreement, included, calibration)
    return Vote(each, together, top, margin, disagreement, included, reasons)


def mean(each: np.ndarray, votes: Sequence[float] = ()) -> np.ndarray:
    """The soft vote [..., K] on probabilities [..., M, K]: the mean, in which each network has its share of `votes`."""
    return np.average(each, axis=-2, weights=votes or None)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 over the last axis."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [..., K] sharpened or softened: softmax(log p / T), applied to the mean of the networks.

    One temperature after the averaging repairs what averaging itself does to calibration (Rahaman and Thiery 2021); one
    per network before it would not.
    """
    return softmax(np.log(np.clip(probabilities, 1e-12, None)) / temperature)


def _doubts(
    confidence: float,
    margin: float,
    disagreement: float,
    included: tuple[bool, ...],
    calibration: Calibration,
) -> tuple[str, ...]:
    found = {
        "low_confidence": confidence < calibration.min_confidence,
        "small_margin": margin < calibration.min_margin,
        "networks_disagree": disagreement > calibration.max_disagreement,
        "no_class_fits": not any(included),
    }
    return tuple(name for name, doubtful in found.items() if doubtful)
