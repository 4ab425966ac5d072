"""Figures of merit on arrays of labels int64 [N] and probabilities float64 [N, K]."""

from __future__ import annotations

from typing import Any

import numpy as np


def confusion(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 [K, K]: rows are the truth, columns what was said."""
    return np.bincount(labels * classes + said, minlength=classes * classes).reshape(classes, classes)


def f1(labels: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """F1 float64 [K]; zero for a class that is neither true nor said."""
    table = confusion(labels, said, classes)
    return 2 * table.diagonal() / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)


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


def ece(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the top class in equal-width bins of confidence (Guo 2017)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(right[which == b].mean() - confidence[which == b].mean())) * float((which == b).mean())
        for b in np.unique(which)
    ]
    return float(sum(gaps))


def nll(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean())


def dice(said: np.ndarray, true: np.ndarray) -> float:
    """Dice of two masks bool [H, W]; 1 where both are empty."""
    total = int(said.sum()) + int(true.sum())
    return 2 * int((said & true).sum()) / total if total else 1.0


def classification(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, per-class figures and the confusion matrix as plain numbers."""
    said = probabilities.argmax(axis=1)
    table = confusion(labels, said, len(classes))
    each = f1(labels, said, len(classes))
    return {
        "images": len(labels),
        "accuracy": float((said == labels).mean()),
        "macro_f1": float(each.mean()),
        "per_class": {
            name: {
                "images": int(table[k].sum()),
                "f1": float(each[k]),
                "recall": float(table[k, k] / max(table[k].sum(), 1)),
                "precision": float(table[k, k] / max(table[:, k].sum(), 1)),
                "auc": auc(labels == k, probabilities[:, k]),
            }
            for k, name in enumerate(classes)
        },
        "confusion": table.tolist(),
    }
