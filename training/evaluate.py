"""Every figure of a stored bundle on the test split, beside three baselines: metrics.json, and a report of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from shared.bundles import Bundle
from training import answers, baselines, chance, figures, index, precision, prepare, report, segmentation, strangers
from training.answers import Answer, Table
from training.index import Item
from worker.pipeline.predictor import Predictor

METRICS = "metrics.json"
REPORT = "report"


def evaluate(
    bundle: Bundle,
    predictor: Predictor,
    items: list[Item],
    root: Path,
    prepared: Path,
    *,
    reference: Predictor | None = None,
    others: Path | None = None,
    runs: Path | None = None,
) -> dict[str, Any]:
    """Compute every figure and write metrics.json and report/ into the bundle; the test split is read here only.

    `reference` is a second runtime (torch float32) to compare `predictor` with, `others` a folder of pictures to show
    as strangers (KIND/FILE), `runs` where the trainings' logs are. Misconfigured where `prepared` is not of this
    bundle's lungs network, BundleError where a network says the same about everything.
    """
    prepare.must_match(prepared, bundle.manifest.lungs, bundle.manifest.preprocessing)
    classes = bundle.manifest.classes
    test = [item for item in items if item.split == "test"]
    asked = answers.ask(bundle, predictor, test, root, "evaluate")
    found = {
        "weights": {w.file: w.sha256 for w in bundle.manifest.files},
        "data": {"fingerprint": index.fingerprint(items), "split": "test"},
        "runtime": predictor.runtime.model_dump(),
        "lungs": segmentation.figures(bundle, predictor, [i for i in test if i.mask], root),
        "gate": gate([a for a in asked if a.item.label in classes]),
        **systems(bundle, answers.table(bundle, asked), items, prepared),
        "runtimes": precision.compare(bundle, predictor, asked, reference, root) if reference else None,
        "shortcuts": shortcuts(items, root, classes),
        "strangers": strangers.fates(bundle, predictor, asked, root, others),
    }
    found = _rounded(found)
    (bundle.root / METRICS).write_text(_json(found), encoding="utf-8")
    report.write(bundle, found, bundle.root / REPORT, runs)
    return found


def systems(bundle: Bundle, table: Table, items: list[Item], prepared: Path) -> dict[str, Any]:
    """The figures of the ensemble, of its networks and of the baselines on the answered images."""
    classes, names = bundle.manifest.classes, [network.name for network in bundle.manifest.networks]
    answered = [a.item for a in table.answers]
    parts = figures.parts(table, classes)
    train = baselines.training(items, classes)
    said = baselines.rivals(items, prepared, answered, classes)
    inside = figures.within(table, parts, said, train, classes)
    sets = figures.prediction_set(table, classes, calibrated_on(bundle, items, prepared))
    return {
        "ensemble": figures.ensemble(table, parts, classes) | {"prediction_set": sets},
        "networks": {name: figures.system(parts, table.each[:, m], classes) for m, name in enumerate(names)},
        "baselines": figures.rivals(parts, said, inside, classes),
        "comparisons": figures.comparisons(table, parts, names, said, inside),
    }


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The few figures that the manifest carries."""
    ensemble, rivals = figures["ensemble"], figures["baselines"]
    populations = ensemble["per_population"]
    return {
        "split": figures["data"]["split"],
        "images": ensemble["images"],
        "refusal_rate": figures["gate"]["refusal_rate"],
        "lungs_dice": figures["lungs"]["all"]["dice"],
        **{name: ensemble[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")},
        "intervals": {name: ensemble["intervals"][name] for name in ("accuracy", "macro_f1")},
        "ece": ensemble["ece"],
        "per_class_f1": {name: v["f1"] for name, v in ensemble["per_class"].items()},
        "adults_balanced_accuracy": populations.get("adult", {}).get("balanced_accuracy"),
        "children_macro_f1": populations.get("child", {}).get("macro_f1"),
        "networks_macro_f1": {name: v["macro_f1"] for name, v in figures["networks"].items()},
        "baselines_macro_f1": {name: v["macro_f1"] for name, v in rivals.items()},
    }


def gate(asked: list[Answer]) -> dict[str, Any]:
    """How often the quality gate refuses films of the known classes: why, and of which class, source and population."""
    refused = np.array([a.analysis is None for a in asked])
    weights = chance.resamples([a.item.group or a.item.id for a in asked])
    by = {"per_class": "label", "per_source": "source", "per_population": "population"}
    return {
        "images": len(asked),
        "refusal_rate": float(refused.mean()),
        "interval": chance.interval(chance.means(refused, weights)),
        "codes": dict(Counter(a.refused for a in asked if a.analysis is None).most_common()),
        **{key: _refused([(getattr(a.item, field), a) for a in asked]) for key, field in by.items()},
    }


def calibrated_on(bundle: Bundle, items: list[Item], prepared: Path) -> dict[str, int]:
    """On how many images of each class the quantiles of the prediction set were measured.

    What `calibrate` recorded; of a bundle without that record, the validation images that the gate lets pass as far as
    the prepared values tell.
    """
    recorded = bundle.manifest.training_data.get("calibrated_on")
    if recorded:
        return recorded
    limits = bundle.manifest.quality
    rows = zip(items, prepare.read_rows(prepared), strict=True)
    passed = [i for i, row in rows if i.split == "val" and not row.refused and _passes(row.values, limits)]
    return dict(Counter(item.label for item in passed))


def shortcuts(items: list[Item], root: Path, classes: list[str]) -> dict[str, Any]:
    """What gives classes away in these images without any lung: the file's size, the patient's age."""
    known = [item for item in items if item.label in classes]
    return {
        "image_size": baselines.image_size(items, root, classes),
        "populations": {c: dict(Counter(i.population for i in known if i.label == c)) for c in classes},
        "sources": {c: dict(Counter(i.source for i in known if i.label == c)) for c in classes},
    }


def _passes(values: dict[str, float], limits: dict[str, float]) -> bool:
    return all(
        values[name] >= limits.get(f"min_{name}", -np.inf) and values[name] <= limits.get(f"max_{name}", np.inf)
        for name in values
    )


def _refused(named: list[tuple[str, Answer]]) -> dict[str, dict[str, int]]:
    shown, refused = Counter(name for name, _ in named), Counter(name for name, a in named if a.analysis is None)
    return {name: {"images": count, "refused": refused[name]} for name, count in sorted(shown.items())}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value


def _json(found: dict[str, Any]) -> str:
    """JSON of one figure per line; a curve is one line, not a page."""
    text = json.dumps(found, indent=1)
    return (
        re.sub(r"\[\n([^\[\]{}]*)\]", lambda m: f"[{' '.join(map(str.strip, m[1].strip().splitlines()))}]", text) + "\n"
    )
