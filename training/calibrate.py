"""Decide on the validation split, and on nothing else: limits of the gate, temperature, thresholds, quantiles."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from shared import bundles
from shared.bundles import Bundle, Calibration
from training import answers, metrics, prepare
from training.answers import Table
from training.index import Item
from worker.pipeline.ensemble import tempered
from worker.pipeline.predictor import Predictor


def calibrate(
    bundle: Bundle, predictor: Predictor, items: list[Item], root: Path, prepared: Path, config_path: Path
) -> Bundle:
    """Write calibration and gate into the bundle's manifest; the draft's answers must be uncalibrated."""
    prepare.must_match(prepared, bundle.manifest.lungs, bundle.manifest.preprocessing)
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    plain = Calibration(coverage=config["coverage"])
    gate = limits(measured(items, prepared, bundle.manifest.classes), config)
    draft = bundles.write(bundle.root, bundle.manifest.model_copy(update={"quality": gate, "calibration": plain}))
    val = [item for item in items if item.split == "val" and item.label in draft.manifest.classes]
    table = answers.table(draft, answers.ask(draft, predictor, val, root, "calibrate"))
    decided = decide(table, draft.manifest.classes, config)
    return bundles.write(bundle.root, draft.manifest.model_copy(update={"calibration": decided}))


def measured(items: list[Item], prepared: Path, classes: list[str]) -> dict[str, np.ndarray]:
    """What the gate measures, float64 [N] by check, on the validation images of known class."""
    rows = [
        row.values
        for item, row in zip(items, prepare.read_rows(prepared), strict=True)
        if item.split == "val" and item.label in classes and not row.refused
    ]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def limits(values: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, float]:
    """The limits of the gate: the fixed ones, and percentiles of `values` float64 [N] by check."""
    rule, found = config["percentiles"], dict(config["limits"])
    for name in rule["low"]:
        found[f"min_{name}"] = float(np.percentile(values[name], rule["share"])) - _slack(values[name], rule)
    for name in rule["high"]:
        found[f"max_{name}"] = float(np.percentile(values[name], 100 - rule["share"])) + _slack(values[name], rule)
    return {name: round(value, 4) for name, value in sorted(found.items())}


def decide(table: Table, classes: list[str], config: dict[str, Any]) -> Calibration:
    """Temperature, then everything that is measured on calibrated probabilities."""
    mean = table.each.mean(axis=1)
    heat = temperature(table.labels, mean)
    calibrated = tempered(mean, heat)
    ordered = np.sort(calibrated, axis=1)
    return Calibration(
        temperature=round(heat, 4),
        min_confidence=round(least_confidence(table.labels, calibrated, config["error_share"]), 4),
        min_margin=round(float(np.percentile(ordered[:, -1] - ordered[:, -2], config["margin_percentile"])), 4),
        max_disagreement=config["max_disagreement"],
        coverage=config["coverage"],
        quantiles=quantiles(table.labels, calibrated, classes, config["coverage"]),
    )


def temperature(labels: np.ndarray, mean: np.ndarray) -> float:
    """The temperature of the mean probabilities [N, K] with the least negative log-likelihood (Guo 2017)."""
    best = minimize_scalar(
        lambda t: metrics.nll(labels, tempered(mean, math.exp(t))), bounds=(-2.3, 2.3), method="bounded"
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


def _slack(values: np.ndarray, rule: dict[str, Any]) -> float:
    low, high = np.percentile(values, (5, 95))
    return float(high - low) * rule["slack"]
