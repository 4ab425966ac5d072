"""What can be had without reading a lung: the majority, the source's majority, the silhouette of the lungs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from training import prepare
from training.index import Item


def majority(train: list[Item], test: list[Item], classes: list[str]) -> np.ndarray:
    """The most frequent class of `train` for every image, one-hot float64 [N, K]."""
    top = Counter(item.label for item in train).most_common(1)[0][0]
    return _one_hot([top] * len(test), classes)


def source_majority(train: list[Item], test: list[Item], classes: list[str]) -> np.ndarray:
    """The most frequent class of the image's source in `train`, one-hot float64 [N, K]: bias, not medicine."""
    tops = {
        source: Counter(i.label for i in train if i.source == source).most_common(1)[0][0]
        for source in {i.source for i in train}
    }
    overall = Counter(item.label for item in train).most_common(1)[0][0]
    return _one_hot([tops.get(item.source, overall) for item in test], classes)


def silhouette(
    items: list[Item], prepared: Path, train: list[Item], test: list[Item], classes: list[str]
) -> np.ndarray:
    """A random forest on the lung mask alone, 32 x 32: probabilities float64 [N, K]."""
    masks = np.load(prepared / "silhouettes.npy", mmap_mode="r")
    where = {item.id: i for i, item in enumerate(items)}
    refused = {row.id for row in prepare.read_rows(prepared) if row.refused}
    fit = [item for item in train if item.id not in refused]
    forest = RandomForestClassifier(300, class_weight="balanced", random_state=0, n_jobs=1)
    forest.fit(_flat(masks, [where[i.id] for i in fit]), [classes.index(i.label) for i in fit])
    found = np.zeros((len(test), len(classes)))
    found[:, forest.classes_] = forest.predict_proba(_flat(masks, [where[i.id] for i in test]))
    return found


def _flat(masks: np.ndarray, which: list[int]) -> np.ndarray:
    return masks[which].reshape(len(which), -1).astype(np.float32) / 255


def _one_hot(names: list[str], classes: list[str]) -> np.ndarray:
    return np.eye(len(classes))[[classes.index(name) for name in names]]
