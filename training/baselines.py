"""What can be had without reading a lung: the majority, the source's majority, the silhouette of the lungs."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from training import prepare
from training.index import Item


def rivals(items: list[Item], prepared: Path, answered: list[Item], classes: list[str]) -> dict[str, np.ndarray]:
    """The probabilities float64 [N, K] of each baseline for the `answered` images, learned from train and stop."""
    train = training(items, classes)
    guessed = guesses(train, answered, classes)
    return guessed | {"silhouette": silhouette(items, prepared, train, answered, classes)}


def training(items: list[Item], classes: list[str]) -> list[Item]:
    """The images of known class that a baseline may learn from."""
    return [item for item in items if item.split in ("train", "stop") and item.label in classes]


def guesses(train: list[Item], answered: list[Item], classes: list[str]) -> dict[str, np.ndarray]:
    """The two baselines that look at no image."""
    return {
        "majority": majority(train, answered, classes),
        "source_majority": source_majority(train, answered, classes),
    }


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


def image_size(items: list[Item], root: Path, classes: list[str]) -> dict[str, Any]:
    """How well width and height of the file alone give the class of the test images away: a lookup table of train."""
    train, test = training(items, classes), [i for i in items if i.split == "test" and i.label in classes]
    seen: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for item in train:
        seen[_size(root / item.image)][item.label] += 1
    overall = Counter(item.label for item in train)
    said = [seen.get(_size(root / item.image), overall).most_common(1)[0][0] for item in test]
    return {"images": len(test), "accuracy": sum(s == i.label for s, i in zip(said, test, strict=True)) / len(test)}


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _flat(masks: np.ndarray, which: list[int]) -> np.ndarray:
    return masks[which].reshape(len(which), -1).astype(np.float32) / 255


def _one_hot(names: list[str], classes: list[str]) -> np.ndarray:
    return np.eye(len(classes))[[classes.index(name) for name in names]]
