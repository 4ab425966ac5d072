"""Figures of merit on arrays of labels int64 [N] and probabilities float64 [N, K]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15  # equal-width bins of confidence, as in Guo 2017


def confusion(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 [K, K]: rows are the truth, columns what was said."""
    return np.bincount(labels * classes + said, minlength=classes * classes).reshape(classes, classes)


def rates(tables: np.ndarray, over: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """What confusion tables [..., K, K] of counts or weights say: some figures [...], some per class [..., K].

    Means over classes are over `over` (default: all), without those that have no such rate: NaN where nothing is
    counted. Balanced accuracy is the mean sensitivity, macro-F1 the mean F1, weighted F1 weighs by the true counts.
    """
    hit, true, said = tables.diagonal(axis1=-2, axis2=-1), tables.sum(axis=-1), tables.sum(axis=-2)
    total = true.sum(axis=-1)
    everything = total[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        each = {
            "f1": 2 * hit / (true + said),
            "sensitivity": hit / true,
            "specificity": (everything - true - said + hit) / (everything - true),
            "ppv": hit / said,
        }
        chosen = list(range(tables.shape[-1])) if over is None else list(over)
        return each | {
            "accuracy": hit.sum(axis=-1) / total,
            "balanced_accuracy": _mean(each["sensitivity"][..., chosen]),
            "macro_f1": _mean(each["f1"][..., chosen]),
            "weighted_f1": (true * np.nan_to_num(each["f1"])).sum(axis=-1) / total,
        }


def f1(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """F1 float64 [K]; zero for a class that is neither true nor said."""
    return np.nan_to_num(rates(confusion(labels, said, classes))["f1"])


def macro_f1(labels: np.ndarray, said: np.ndarray, classes: int) -> float:
    """The plain mean of the classes' F1."""
    return float(f1(labels, said, classes).mean())


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve of scores float [N] for labels bool [N] (Mann-Whitney, ties count half)."""
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the top class in equal-width bins of confidence (Guo 2017)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    gaps = (right - confidence) @ in_bins(confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def in_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Which equal-width bin of 0..1 each confidence float [N] lies in, one-hot float64 [N, bins]."""
    return np.eye(bins)[np.minimum((confidence * bins).astype(int), bins - 1)]


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """The bins of `ece` that hold an image: images, mean confidence and accuracy of the top class."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = []
    for b, column in enumerate(in_bins(confidence, bins).T.astype(bool)):
        if column.any():
            low, high = b / bins, (b + 1) / bins
            mean, hit = float(confidence[column].mean()), float(right[column].mean())
            found.append({"from": low, "to": high, "images": int(column.sum()), "confidence": mean, "accuracy": hit})
    return found


def risk(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The error rate float64 [N] of the one, two, ... N most confident answers."""
    wrong = probabilities.argmax(axis=1) != labels
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    return np.cumsum(wrong[order]) / np.arange(1, len(labels) + 1)


def nll(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean())


def dice(said: np.ndarray, true: np.ndarray) -> float:
    """Dice of two masks bool [H, W]; 1 where both are empty."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 1.0


def classification(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Accuracies, F1, per-class figures and the confusion matrix as plain numbers."""
    table = confusion(labels, probabilities.argmax(axis=1), len(classes))
    found = rates(table)
    return {
        "images": len(labels),
        **{name: float(found[name]) for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")},
        "per_class": {
            name: {
                "images": int(table[k].sum()),
                **{rate: float(found[rate][k]) for rate in ("f1", "sensitivity", "specificity", "ppv")},
                "auc": auc(labels == k, probabilities[:, k]),
            }
            for k, name in enumerate(classes)
        },
        "confusion": table.tolist(),
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is a number; NaN where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
