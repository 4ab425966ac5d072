"""The figures of the ensemble, its networks and the baselines: overall, by source, for adults and for children."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from training import baselines, chance, metrics
from training.answers import Table
from training.index import Item

RARE = 0.02  # a class with a smaller share of a group of images has no rate of its own there
CURVE = 100  # points at which a curve is kept
POPULATIONS = ("adult", "child")
BRIEF = ("accuracy", "balanced_accuracy", "macro_f1")

Probabilities = dict[str, np.ndarray]  # of each system, float64 [N, K]


@dataclass(frozen=True)
class Part:
    """Images that are judged together: their rows in the table, their labels int64 [N], the resamples' weights [B, N].

    `over` are the classes that count in means over classes.
    """

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    over: list[int]


@dataclass(frozen=True)
class Parts:
    """The whole table and its parts, each with the same resamples for whoever is judged on it."""

    whole: Part
    sources: dict[str, Part]
    populations: dict[str, Part]


def parts(table: Table, classes: list[str]) -> Parts:
    """The parts of the answered images: all, every source, adults and children where they are known."""
    sources = np.array([a.item.source for a in table.answers])
    populations = np.array([a.item.population for a in table.answers])
    return Parts(
        part(table, classes),
        {name: part(table, classes, sources == name) for name in sorted(set(sources.tolist()))},
        {name: part(table, classes, populations == name) for name in POPULATIONS if (populations == name).any()},
    )


def part(table: Table, classes: list[str], chosen: np.ndarray | None = None) -> Part:
    """The `chosen` images bool [N], without those of classes that are rare among them; or all images."""
    rows, over = np.arange(len(table.labels)), list(range(len(classes)))
    if chosen is not None:
        counts = np.bincount(table.labels[chosen], minlength=len(classes))
        over = np.flatnonzero(counts > RARE * counts.sum()).tolist()
        rows = np.flatnonzero(chosen & np.isin(table.labels, over))
    items = [table.answers[row].item for row in rows]
    # An image of no known patient stands for itself.
    weights = chance.resamples([item.group or item.id for item in items])
    return Part(rows, table.labels[rows], weights, over)


def brief(part: Part, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """The three figures of a part's images, from their probabilities [n, K], each with its interval."""
    point, samples = _judged(part, probabilities)
    return {
        "images": len(part.labels),
        "classes": [classes[k] for k in part.over],
        **{name: float(point[name]) for name in BRIEF},
        "intervals": {name: chance.interval(samples[name]) for name in BRIEF},
    }


def system(found: Parts, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """All that the probabilities [N, K] of one system allow to say of it."""
    whole = found.whole
    return (
        _classified(whole, probabilities, classes)
        | _by_part(found, probabilities, classes)
        | {
            "ece": metrics.ece(whole.labels, probabilities),
            "ece_floor": chance.ece_floor(probabilities),
            "nll": metrics.nll(whole.labels, probabilities),
            "reliability": metrics.reliability(whole.labels, probabilities),
            "roc": {name: roc(whole.labels == k, probabilities[:, k]) for k, name in enumerate(classes)},
            "selective": _selective(whole.labels, probabilities),
        }
    )


def ensemble(table: Table, found: Parts, classes: list[str]) -> dict[str, Any]:
    """The ensemble's figures: those of any system, before the temperature too, and its sure and unsure answers."""
    said, mean = system(found, table.together, classes), table.vote
    said["ece_before_temperature"] = metrics.ece(table.labels, mean)
    said["ece_floor_before_temperature"] = chance.ece_floor(mean)
    said["reliability_before_temperature"] = metrics.reliability(table.labels, mean)
    said["selective"] = _sure(table) | said["selective"]
    return said


def within(table: Table, found: Parts, said: Probabilities, train: list[Item], classes: list[str]) -> dict[str, Any]:
    """The baselines `said` [N, K] for adults and for children; the guesses are made from images of these alone."""
    known = {population: [i for i in train if i.population == population] for population in found.populations}
    answers = {}
    for population, part in found.populations.items():
        answers[population] = {name: probabilities[part.rows] for name, probabilities in said.items()}
        if known[population]:
            items = [table.answers[row].item for row in part.rows]
            answers[population] |= baselines.guesses(known[population], items, classes)
    return answers


def rivals(found: Parts, said: Probabilities, inside: dict[str, Probabilities], classes: list[str]) -> dict[str, Any]:
    """The baselines' figures, `inside` each population from its own guesses."""
    figures = {
        name: _classified(found.whole, probabilities, classes) | _by_part(found, probabilities, classes)
        for name, probabilities in said.items()
    }
    for population, guessed in inside.items():
        for name, probabilities in guessed.items():
            part = found.populations[population]
            figures[name]["per_population"][population] = brief(part, probabilities, classes)
    return figures


def comparisons(
    table: Table, found: Parts, names: list[str], said: Probabilities, inside: dict[str, Probabilities]
) -> dict[str, Any]:
    """How far the ensemble lies above its best network, and above what the source gives away: on equal resamples."""
    whole, guess = found.whole, "source_majority"
    scores = [float(_judged(whole, table.each[:, m])[0]["macro_f1"]) for m in range(len(names))]
    best = int(np.argmax(scores))
    above = {"all": _difference(whole, table.together, said[guess], "balanced_accuracy")}
    for population, part in found.populations.items():
        mine, other = table.together[part.rows], inside[population][guess]
        above[population] = _difference(part, mine, other, "balanced_accuracy")
    gain = _difference(whole, table.together, table.each[:, best], "macro_f1")
    return {"best_network": {"name": names[best], "macro_f1": gain}, "source_majority": {"balanced_accuracy": above}}


def prediction_set(table: Table, classes: list[str], calibrated_on: dict[str, int]) -> dict[str, Any]:
    """How often the true class is in the prediction set, whether chance explains that, and how large the sets are."""
    said = [a.analysis for a in table.answers if a.analysis is not None]
    hit = np.array([classes[k] in x.prediction_set for k, x in zip(table.labels, said, strict=True)])
    sizes = np.array([len(x.prediction_set) for x in said])
    stated = said[0].coverage
    return {
        "stated_coverage": stated,
        "coverage": float(hit.mean()),
        "per_class": {
            name: _covered(hit[table.labels == k], sizes[table.labels == k], calibrated_on.get(name, 0), stated)
            for k, name in enumerate(classes)
            if (table.labels == k).any()
        },
        "mean_size": float(sizes.mean()),
        "sizes": {str(size): int((sizes == size).sum()) for size in sorted(set(sizes.tolist()))},
    }


def roc(labels: np.ndarray, scores: np.ndarray) -> dict[str, list[float]]:
    """The ROC curve of scores float [N] for labels bool [N], at no more than CURVE of its points."""
    if labels.all() or not labels.any():
        return {"false_positive_rate": [], "true_positive_rate": []}
    false, true, _ = roc_curve(labels, scores)
    kept = np.unique(np.linspace(0, len(false) - 1, CURVE).round().astype(int))
    return {"false_positive_rate": false[kept].tolist(), "true_positive_rate": true[kept].tolist()}


def _judged(part: Part, probabilities: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The rates of probabilities on a part's images, and the same of every resample."""
    said, count = probabilities.argmax(axis=1), probabilities.shape[1]
    point = metrics.rates(metrics.confusion(part.labels, said, count), part.over)
    return point, metrics.rates(chance.tables(part.labels, said, part.weights, count), part.over)


def _classified(part: Part, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """The classification figures of the whole table, each with its interval."""
    _, samples = _judged(part, probabilities)
    intervals: dict[str, Any] = {name: chance.interval(samples[name]) for name in (*BRIEF, "weighted_f1")}
    intervals["per_class"] = {
        name: {rate: chance.interval(samples[rate][:, k]) for rate in ("f1", "sensitivity", "specificity", "ppv")}
        | {"auc": chance.interval(chance.aucs(part.labels == k, probabilities[:, k], part.weights))}
        for k, name in enumerate(classes)
    }
    return metrics.classification(part.labels, probabilities, classes) | {"intervals": intervals}


def _by_part(found: Parts, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    named = {"per_source": found.sources, "per_population": found.populations}
    return {
        key: {name: brief(part, probabilities[part.rows], classes) for name, part in chosen.items()}
        for key, chosen in named.items()
    }


def _difference(part: Part, mine: np.ndarray, other: np.ndarray, rate: str) -> dict[str, Any]:
    """One rate of `mine` minus that of `other`, both probabilities [n, K] on the part's images."""
    (point, samples), (theirs, their_samples) = _judged(part, mine), _judged(part, other)
    return {
        "difference": float(point[rate] - theirs[rate]),
        "interval": chance.interval(samples[rate] - their_samples[rate]),
    }


def _covered(hit: np.ndarray, sizes: np.ndarray, calibration: int, stated: float) -> dict[str, Any]:
    """Coverage of one class, and whether it lies where calibration and test samples of these sizes put it by chance."""
    low, high = chance.coverage(calibration, len(hit), stated)
    return {
        "images": len(hit),
        "calibration_images": calibration,
        "coverage": float(hit.mean()),
        "interval": [low / len(hit), high / len(hit)],
        "inside": bool(low <= hit.sum() <= high),
        "mean_size": float(sizes.mean()),
    }


def _selective(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """The risk-coverage curve, the area under it, and the accuracy of the most confident shares."""
    risk = metrics.risk(labels, probabilities)
    shares = np.linspace(0, 1, CURVE // 2 + 1)[1:]
    at = {float(share): float(risk[max(int(len(risk) * share), 1) - 1]) for share in shares}
    return {
        "aurc": float(risk.mean()),
        "risk_coverage": {"coverage": list(at), "risk": list(at.values())},
        "accuracy_at_coverage": {
            f"{share:.1f}": 1 - float(risk[max(int(len(risk) * share), 1) - 1]) for share in (0.5, 0.7, 0.9, 1.0)
        },
    }


def _sure(table: Table) -> dict[str, Any]:
    """Accuracy of sure and of unsure answers, and why answers were unsure."""
    right = table.together.argmax(axis=1) == table.labels
    said = [a.analysis for a in table.answers if a.analysis is not None]
    sure = np.array([not x.uncertain for x in said])
    return {
        "sure_share": float(sure.mean()),
        "accuracy_sure": float(right[sure].mean()) if sure.any() else None,
        "accuracy_unsure": float(right[~sure].mean()) if (~sure).any() else None,
        "uncertain_because": dict(Counter(reason for x in said for reason in x.uncertain_because)),
    }
