"""The figures of a set of answers that every part of the audit gives, with bootstrap intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training import chance, metrics
from training.index import Item

NAMES = ("accuracy", "balanced_accuracy", "macro_f1")


def scores(labels: np.ndarray, said: np.ndarray, films: Sequence[Item], classes: list[str]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro-F1 and recalls of `said` int64 [N] against `labels` int64 [N].

    Means are over the classes that `labels` has; `said` gives the share of each answer. `intervals` and
    `recall_intervals` are 95 % intervals of a bootstrap over the patients or groups of the `films` [N].
    """
    if not len(labels):
        return {"images": 0}
    present = np.unique(labels).tolist()
    weights = chance.resamples([film.group or film.id for film in films])  # of no known patient: for itself
    found = metrics.rates(metrics.confusion(labels, said, len(classes)), present)
    drawn = metrics.rates(chance.tables(labels, said, weights, len(classes)), present)
    return {
        "images": len(labels),
        **{name: float(found[name]) for name in NAMES},
        "recall": {classes[k]: float(found["sensitivity"][k]) for k in present},
        "said": {name: float((said == k).mean()) for k, name in enumerate(classes)},
        "intervals": {name: chance.interval(drawn[name]) for name in NAMES},
        "recall_intervals": {classes[k]: chance.interval(drawn["sensitivity"][:, k]) for k in present},
    }


def rounded(value: Any) -> Any:
    """Numbers at any depth with four digits; what is no number is null."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 4) if np.isfinite(value) else None
    return value
