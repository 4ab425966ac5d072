"""What can be told from the networks' features: which source a film is from, beside which class it has."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from shared.bundles import Bundle
from training import prepare
from training.audit_look import Looks, classify
from training.index import Item
from worker.pipeline.predictor import Predictor

STRENGTH = 0.01  # inverse regularisation: with more features than films a loose fit only learns the films
ROUNDS = 200
LEAST = 10  # a target with fewer training films is left out
CHUNK = 64
NORMAL = "normal"

Features = list[np.ndarray]
Target = Callable[[Item], str]
Question = tuple[Target, Callable[[Item], bool]]


def _source(item: Item) -> str:
    return item.source


def _label(item: Item) -> str:
    return item.label


QUESTIONS: dict[str, Question] = {
    "source": (_source, lambda item: True),
    "class": (_label, lambda item: True),
    "source_of_normals": (_source, lambda item: item.label == NORMAL),
    "source_of_adult_normals": (_source, lambda item: (item.label, item.population) == (NORMAL, "adult")),
}


def training_features(
    bundle: Bundle, predictor: Predictor, items: list[Item], prepared: Path, path: Path, *, films: int
) -> tuple[list[Item], Features]:
    """`films` training films drawn from a seed and their features, one float32 [N, D] per network; kept in `path`."""
    good = [not row.refused for row in prepare.read_rows(prepared)]
    known = bundle.manifest.classes
    rows = np.array([i for i, x in enumerate(items) if x.split == "train" and x.label in known and good[i]])
    drawn = np.sort(np.random.default_rng(0).permutation(rows)[:films])
    if not path.is_file():
        _save(path, _features(bundle, predictor, prepared, drawn))
    with np.load(path, allow_pickle=False) as archive:
        return [items[i] for i in drawn], [archive[name] for name in archive.files]


def probe(fit: list[Item], features: Features, looks: Looks, names: list[str]) -> dict[str, Any]:
    """Logistic regressions on standardised features, fitted on training films and scored on the test films.

    For each network of `names` and all of them together: the source; the class; the source of normal films alone, of
    all of them and of adults, where no disease can tell it. Beside each the majority guess, and for the source the best
    guess of one who knows the class and nothing else.
    """
    sets = {"together": (features, looks.features)}
    sets |= {name: ([f], [t]) for name, f, t in zip(names, features, looks.features, strict=True) if len(names) > 1}
    found = {}
    for name, (target, about) in QUESTIONS.items():
        ours = [i for i, item in enumerate(fit) if about(item)]
        theirs = [i for i, item in enumerate(looks.items) if about(item)]
        found[name] = _asked(fit, ours, looks.items, theirs, target, sets)
    return found


def _asked(
    fit: list[Item],
    ours: list[int],
    test: list[Item],
    theirs: list[int],
    target: Target,
    sets: dict[str, tuple[Features, Features]],
) -> dict[str, Any]:
    """One question: fitted on the films `ours` of `fit`, scored on the films `theirs` of `test`."""
    counts = Counter(target(fit[i]) for i in ours)
    wanted = {name for name, count in counts.items() if count >= LEAST}
    ours = [i for i in ours if target(fit[i]) in wanted]
    theirs = [i for i in theirs if target(test[i]) in wanted]
    true = np.array([target(test[i]) for i in theirs])
    out: dict[str, Any] = {"fitted_on": len(ours), "images": len(theirs), "targets": sorted(wanted)}
    if len(wanted) < 2 or len(set(true.tolist())) < 2:
        return out | {"not_evaluable": "fewer than two of them have films"}
    guess = np.full(len(true), counts.most_common(1)[0][0])
    out |= {"majority": _scores(true, guess)}
    if target is _source:
        out |= {"knowing_the_class": _scores(true, _by_class([fit[i] for i in ours], [test[i] for i in theirs]))}
    labels = np.array([target(fit[i]) for i in ours])
    out["probes"] = {
        name: _scores(true, _fitted(_joined(f)[ours], labels).predict(_joined(t)[theirs]))
        for name, (f, t) in sets.items()
    }
    return out


def _fitted(features: np.ndarray, labels: np.ndarray) -> Pipeline:
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=ROUNDS, random_state=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so strongly regularised, the last digits change no answer
        return model.fit(features, labels)


def _by_class(fit: list[Item], test: list[Item]) -> np.ndarray:
    """The most frequent source of each film's true class: what the class alone tells."""
    tops = {
        label: Counter(item.source for item in fit if item.label == label).most_common(1)[0][0]
        for label in {item.label for item in fit}
    }
    overall = Counter(item.source for item in fit).most_common(1)[0][0]
    return np.array([tops.get(item.label, overall) for item in test])


def _scores(true: np.ndarray, said: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a guess may name what no test film is
        balanced = float(balanced_accuracy_score(true, said))
    return {"accuracy": float((true == said).mean()), "balanced_accuracy": balanced}


def _features(bundle: Bundle, predictor: Predictor, prepared: Path, rows: np.ndarray) -> Features:
    tensors, scale = np.load(prepared / "tensors.npy", mmap_mode="r"), bundle.manifest.preprocessing.clip / 127
    chunks = [tensors[rows[i : i + CHUNK]] for i in range(0, len(rows), CHUNK)]
    said = [classify(bundle, predictor, x.astype(np.float32) * scale) for x in tqdm(chunks, "features", mininterval=10)]
    return [np.concatenate(each) for each in zip(*(x.features for x in said), strict=True)]


def _joined(features: Features) -> np.ndarray:
    return np.concatenate(features, axis=1)


def _save(path: Path, features: Features) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, *features)
    part.replace(path)
