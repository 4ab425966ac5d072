"""Decide the vote on the stop fold; on the validation split the gate's limits, temperature, thresholds, quantiles."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from shared import bundles
from shared.bundles import Bundle, Calibration
from training import answers, gate, metrics, ood, prepare
from training.answers import Table
from training.index import Item
from worker.pipeline.ensemble import mean, softmax, tempered
from worker.pipeline.predictor import Predictor


def calibrate(
    bundle: Bundle, predictor: Predictor, items: list[Item], root: Path, prepared: Path, config_path: Path
) -> Bundle:
    """Write the model of known features, gate and calibration into the bundle; what stood there is not asked."""
    prepare.must_match(prepared, bundle.manifest.lungs, bundle.manifest.preprocessing)
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    known = ood.fit(bundle, predictor, items, prepared, bundle.root)
    plain = {"ood": known, "quality": {}, "calibration": Calibration(coverage=config["coverage"])}
    draft = bundles.write(bundle.root, bundle.manifest.model_copy(update=plain))
    classes = draft.manifest.classes
    stop = [item for item in items if item.split == "stop" and item.label in classes]
    judged = answers.table(draft, answers.ask(draft, predictor, stop, root, "votes"))
    voting = Calibration(coverage=config["coverage"], votes=votes(judged.labels, judged.each))
    draft = bundles.write(draft.root, draft.manifest.model_copy(update={"calibration": voting}))
    val = [item for item in items if item.split == "val" and item.label in classes]
    asked = answers.ask(draft, ood.Scoring(predictor, draft), val, root, "calibrate")
    films = [a.analysis.quality for a in asked if a.analysis]
    limits = gate.fitted(films, len(asked) - len(films), config)
    passing = [a for a in asked if a.analysis and not gate.refusal(a.analysis.quality, limits)]
    table = answers.table(draft, passing)
    further = {"unusual_ood_score": unusual(table, config), "votes": voting.votes}
    decided = decide(table, classes, config).model_copy(update=further)
    story = draft.manifest.training_data | {"calibrated_on": dict(Counter(a.item.label for a in table.answers))}
    update = {"quality": limits, "calibration": decided, "training_data": story}
    return bundles.write(draft.root, draft.manifest.model_copy(update=update))


def unusual(table: Table, config: dict[str, Any]) -> float:
    """The score of features above which a film is called unusual."""
    scores = [a.analysis.quality["ood_score"] for a in table.answers if a.analysis]
    return round(float(np.percentile(scores, 100 - config["unusual_percent"])), 4)


def decide(table: Table, classes: list[str], config: dict[str, Any]) -> Calibration:
    """Temperature, then everything that is measured on calibrated probabilities."""
    heat = temperature(table.labels, table.vote)
    calibrated = tempered(table.vote, heat)
    ordered = np.sort(calibrated, axis=1)
    return Calibration(
        temperature=round(heat, 4),
        min_confidence=round(least_confidence(table.labels, calibrated, config["error_share"]), 4),
        min_margin=round(float(np.percentile(ordered[:, -1] - ordered[:, -2], config["margin_percentile"])), 4),
        max_disagreement=config["max_disagreement"],
        coverage=config["coverage"],
        quantiles=quantiles(table.labels, calibrated, classes, config["coverage"]),
    )


def votes(labels: np.ndarray, each: np.ndarray) -> list[float]:
    """The share of each network in the vote on its probabilities [N, M, K]: with these, and a temperature after them,
    the negative log-likelihood is least.

    A stronger network counts for more, and a weaker one keeps what it knows beside it. On the films that chose the
    round of each network, because those of validation must not be used twice.
    """
    networks = each.shape[1]

    def shares(x: np.ndarray) -> np.ndarray:
        return softmax(np.append(x[: networks - 1], 0.0))

    best = minimize(
        lambda x: metrics.nll(labels, tempered(mean(each, list(shares(x))), math.exp(x[-1]))),
        np.zeros(networks),
        method="Nelder-Mead",
    )
    return [round(float(share), 3) for share in shares(best.x)]


def temperature(labels: np.ndarray, vote: np.ndarray) -> float:
    """The temperature of the vote [N, K] with the least negative log-likelihood (Guo 2017)."""
    best = minimize_scalar(
        lambda t: metrics.nll(labels, tempered(vote, math.exp(t))), bounds=(-2.3, 2.3), method="bounded"
    )
    return math.exp(float(best.x))


def least_confidence(labels: np.ndarray, probabilities: np.ndarray, error_share: float) -> float:
    """The lowest confidence at which the answers above it err at most `error_share` as often as all answers."""
    confidence, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    order = np.argsort(confidence)[::-1]
    errors = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(errors <= error_share * wrong.mean())
    return float(confidence[order[good[-1]]]) if good.size else 1.0


def quantiles(labels: np.ndarray, probabilities: np.ndarray, classes: list[str], coverage: float) -> dict[str, float]:
    """Per class the conformal quantile of 1 - p of the true class, with the finite-sample correction (Vovk 2012)."""
    found = {}
    for k, name in enumerate(classes):
        scores = np.sort(1 - probabilities[labels == k, k])
        rank = math.ceil((len(scores) + 1) * coverage)
        found[name] = math.ceil(float(scores[rank - 1]) * 1e6) / 1e6 if rank <= len(scores) else 1.0
    return found
