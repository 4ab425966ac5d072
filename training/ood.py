"""Fit where the networks' features of the training films lie, to tell films that are like none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from tqdm import tqdm

from shared.bundles import Bundle, OodModel, checksum
from training import prepare
from training.index import Item
from worker.pipeline.ood import Gaussians, scores
from worker.pipeline.predictor import Outputs, Predictor
from worker.runtimes import known

FILE = "ood.safetensors"
AXES = 128  # of each network's features: strangers show along the last ones, and the file stays near one megabyte
FILMS = 2400  # of training, every class alike: enough for so many axes, and minutes to read
SEED = 20261125


def fit(bundle: Bundle, predictor: Predictor, items: list[Item], prepared: Path, out: Path) -> OodModel:
    """Write `out`/ood.safetensors from features of the train split and return its entry for the manifest.

    The features are kept beside `prepared` for the next call with the same weights.
    """
    chosen = sample(items, prepared, bundle.manifest.classes)
    labels = np.array([bundle.manifest.classes.index(items[i].label) for i in chosen])
    found = _features(bundle, predictor, prepared, chosen)
    arrays: dict[str, np.ndarray] = {}
    for network, features in zip(bundle.manifest.networks, found, strict=True):
        one = gaussians(features, labels)
        halved = {**vars(one), "axes": one.axes.astype(np.float16)}  # most of the bytes; scores move by a thousandth
        arrays |= {f"{network.name}.{part}": np.ascontiguousarray(value) for part, value in halved.items()}
    save_file(arrays, out / FILE)
    return OodModel(file=FILE, sha256=checksum(out / FILE))


class Scoring:
    """A predictor that was opened before the bundle had its model: the same answers, with scores."""

    def __init__(self, predictor: Predictor, bundle: Bundle) -> None:
        self.runtime, self.segment, self.view = predictor.runtime, predictor.segment, predictor.view
        self._classify, self._known = predictor.classify, known.load(bundle)

    def classify(self, tensors: np.ndarray) -> Outputs:
        """What the predictor says of float32 [N, 1, S, S], and the scores of its features."""
        said = self._classify(tensors)
        return replace(said, ood_scores=scores(self._known, said.features))


def gaussians(features: np.ndarray, labels: np.ndarray) -> Gaussians:
    """One Gaussian per class of features float32 [N, D], with one covariance for all, shrunk (Ledoit and Wolf 2004)."""
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    standard = (features - mean) / scale
    axes = PCA(min(AXES, *features.shape), random_state=SEED).fit(standard).components_
    placed = standard @ axes.T
    centres = np.stack([placed[labels == k].mean(axis=0) for k in np.unique(labels)])
    within = placed - centres[np.searchsorted(np.unique(labels), labels)]
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(within).covariance_)
    whiten = vectors / np.sqrt(np.maximum(values, 1e-9))
    return Gaussians(
        mean=mean.astype(np.float32),
        axes=(whiten.T @ axes / scale).astype(np.float32),
        centres=(centres @ whiten).astype(np.float32),
    )


def sample(items: Sequence[Item], prepared: Path, classes: list[str]) -> np.ndarray:
    """The places in the index of at most FILMS training films that were prepared, as many of each class as it has."""
    rng = np.random.default_rng(SEED)
    rows = prepare.read_rows(prepared)
    kept = [i for i, item in enumerate(items) if item.split == "train" and not rows[i].refused]
    each = [rng.permutation([i for i in kept if items[i].label == name])[: FILMS // len(classes)] for name in classes]
    return np.sort(np.concatenate(each)).astype(np.int64)


def _features(bundle: Bundle, predictor: Predictor, prepared: Path, chosen: np.ndarray) -> list[np.ndarray]:
    """The pooled features float32 [N, D] of each network for the chosen prepared tensors, computed once."""
    path = prepared.parent / f"features-{_key(bundle, prepared, chosen)}.npz"
    if not path.is_file():
        tensors = np.load(prepared / "tensors.npy", mmap_mode="r")
        factor = bundle.manifest.preprocessing.clip / 127
        batches = np.array_split(chosen, max(len(chosen) // 16, 1))
        said = [
            predictor.classify(tensors[rows][:, None].astype(np.float32) * factor).features
            for rows in tqdm(batches, "features", mininterval=10)
        ]
        np.savez(path, *(np.concatenate(part) for part in zip(*said, strict=True)))
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def _key(bundle: Bundle, prepared: Path, chosen: np.ndarray) -> str:
    """Weights, preparation and films: what the features depend on."""
    digest = hashlib.sha256((prepared / prepare.RECIPE).read_bytes() + chosen.tobytes())
    for network in bundle.manifest.networks:
        digest.update(network.sha256.encode())
    return digest.hexdigest()[:12]
