"""How much about the class a cheap classifier reads from what the networks never see, and from what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from tqdm import tqdm

from training import audit_parts, baselines, prepare
from training.audit_figures import scores
from training.index import Item
from worker.pipeline import decode, lungs

SIDE = prepare.SILHOUETTE
TREES = 300  # those of the silhouette baseline


def thumbnails(
    items: list[Item], root: Path, prepared: Path, classes: list[str], clip: float, *, films: int
) -> dict[str, Any]:
    """Random forests on 32 x 32 thumbnails of the background, the lungs and their silhouette, on the test split.

    All three are fitted on the same `films` training films, drawn from a seed. The background is the whole film in its
    square, standardised where there is no lung and zero where there is any (the hole has the lungs' shape); the lungs
    are the classifiers' own tensors. Unlike the networks, each forest was taught what it is asked about.
    """
    good = [not row.refused for row in prepare.read_rows(prepared)]
    where = {item.id: i for i, item in enumerate(items)}
    known = [item for i, item in enumerate(items) if good[i] and item.label in classes]
    train = [item for item in known if item.split == "train"]
    fit = [train[i] for i in np.random.default_rng(0).permutation(len(train))[:films]]
    test = [item for item in known if item.split == "test"]
    silhouettes = np.load(prepared / "silhouettes.npy", mmap_mode="r")
    tensors = np.load(prepared / "tensors.npy", mmap_mode="r")

    def background(item: Item) -> np.ndarray:
        pixels = decode.decode((root / item.image).read_bytes()).pixels
        return background_of(pixels, silhouettes[where[item.id]], clip)

    def inside(item: Item) -> np.ndarray:
        return lungs.resize(tensors[where[item.id]].astype(np.float32) * (clip / 127), SIDE)

    found: dict[str, Any] = {"fitted_on": len(fit)}
    for name, of in (("background", background), ("lungs", inside)):
        ours = np.stack([of(item).ravel() for item in tqdm(fit, name, mininterval=10)])
        theirs = np.stack([of(item).ravel() for item in test])
        found[name] = _scored(_forest(ours, fit, theirs, classes), test, classes)
    found["silhouette"] = _scored(baselines.silhouette(items, prepared, fit, test, classes), test, classes)
    return found


def background_of(pixels: np.ndarray, silhouette: np.ndarray, clip: float) -> np.ndarray:
    """A film float32 [H, W] as float32 [32, 32], standardised where `silhouette` uint8 [32, 32] has no lung at all."""
    inside_film = lungs.resize(lungs.square_of(np.ones_like(pixels)), SIDE) > 0.5
    film = lungs.resize(lungs.square_of(pixels), SIDE)
    return audit_parts.standardised(film, inside_film & (silhouette == 0), clip)


def _forest(ours: np.ndarray, fit: list[Item], theirs: np.ndarray, classes: list[str]) -> np.ndarray:
    """Probabilities float64 [N, K] of a forest like the silhouette baseline's."""
    forest = RandomForestClassifier(TREES, class_weight="balanced", random_state=0, n_jobs=1)
    forest.fit(ours, [classes.index(item.label) for item in fit])
    found = np.zeros((len(theirs), len(classes)))
    found[:, forest.classes_] = forest.predict_proba(theirs)
    return found


def _scored(probabilities: np.ndarray, test: list[Item], classes: list[str]) -> dict[str, Any]:
    labels = np.array([classes.index(item.label) for item in test])
    return scores(labels, probabilities.argmax(axis=1), test, classes)
