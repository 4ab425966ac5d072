"""Every figure of a stored bundle on the test split, beside three baselines, into the bundle's metrics.json."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from shared.bundles import Bundle
from shared.errors import Rejected
from training import answers, baselines, index, metrics, prepare, strangers
from training.answers import Answer, Table
from training.index import Item
from worker.pipeline import decode, lungs
from worker.pipeline.analyze import analyze
from worker.pipeline.predictor import Predictor

METRICS = "metrics.json"
SAMPLE = 100  # test films that are also shown inverted and turned


def evaluate(bundle: Bundle, predictor: Predictor, items: list[Item], root: Path, prepared: Path) -> dict[str, Any]:
    """Compute and write every figure; the test split is read here and nowhere else."""
    prepare.must_match(prepared, bundle.manifest.lungs, bundle.manifest.preprocessing)
    classes = bundle.manifest.classes
    test = [item for item in items if item.split == "test"]
    known = [item for item in test if item.label in classes]
    asked = answers.ask(bundle, predictor, test, root, "evaluate")
    table = answers.table(bundle, asked)
    train = [item for item in items if item.split in ("train", "stop") and item.label in classes]
    answered = [a.item for a in table.answers]
    rivals = {
        "majority": baselines.majority(train, answered, classes),
        "source_majority": baselines.source_majority(train, answered, classes),
        "silhouette": baselines.silhouette(items, prepared, train, answered, classes),
    }
    figures = {
        "weights": {w.file: w.sha256 for w in (bundle.manifest.lungs, *bundle.manifest.networks)},
        "data": {"fingerprint": index.fingerprint(items), "split": "test"},
        "runtime": predictor.runtime.model_dump(),
        "lungs": lungs_dice(bundle, predictor, [i for i in test if i.mask], root),
        "gate": gate(asked, known),
        "ensemble": ensemble(table, classes),
        "networks": networks(table, bundle),
        "baselines": {name: metrics.classification(table.labels, p, classes) for name, p in rivals.items()},
        "strangers": stranger_answers(bundle, predictor, asked, root),
    }
    figures = _rounded(figures)
    (bundle.root / METRICS).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The few figures that the manifest carries."""
    ensemble, rivals = figures["ensemble"], figures["baselines"]
    return {
        "split": figures["data"]["split"],
        "images": ensemble["images"],
        "refusal_rate": figures["gate"]["refusal_rate"],
        "lungs_dice": figures["lungs"]["all"]["dice"],
        "accuracy": ensemble["accuracy"],
        "macro_f1": ensemble["macro_f1"],
        "ece": ensemble["ece"],
        "per_class_f1": {name: v["f1"] for name, v in ensemble["per_class"].items()},
        "networks_macro_f1": {name: v["macro_f1"] for name, v in figures["networks"].items()},
        "baselines_macro_f1": {name: v["macro_f1"] for name, v in rivals.items()},
    }


def lungs_dice(bundle: Bundle, predictor: Predictor, items: list[Item], root: Path) -> dict[str, Any]:
    """Mean Dice of the lung mask at the image's own size, over all and by the masks' convention."""
    manifest, scores = bundle.manifest, defaultdict(list)
    for item in tqdm(items, "lungs", mininterval=10):
        pixels = decode.decode((root / item.image).read_bytes()).pixels
        true = decode.decode((root / item.mask).read_bytes()).pixels > 0.5
        found = lungs.find(pixels, predictor, manifest.lungs, manifest.preprocessing)
        for kind in ("all", item.mask_kind):
            scores[kind].append(metrics.dice(found.mask, true))
    return {
        kind: {"images": len(v), "dice": statistics.fmean(v), "median": statistics.median(v), "lowest": min(v)}
        for kind, v in scores.items()
    }


def gate(asked: list[Answer], known: list[Item]) -> dict[str, Any]:
    """How often the quality gate refuses films of the known classes, and why."""
    ids = {item.id for item in known}
    codes = Counter(a.refused for a in asked if a.refused and a.item.id in ids)
    return {"images": len(known), "refusal_rate": sum(codes.values()) / len(known), "codes": dict(codes)}


def ensemble(table: Table, classes: list[str]) -> dict[str, Any]:
    """The ensemble's figures: classes, calibration, prediction sets, sure and unsure answers, sources."""
    found = metrics.classification(table.labels, table.together, classes)
    found["ece"] = metrics.ece(table.labels, table.together)
    found["ece_before_temperature"] = metrics.ece(table.labels, table.each.mean(axis=1))
    found["nll"] = metrics.nll(table.labels, table.together)
    found["prediction_set"] = _sets(table, classes)
    found["selective"] = _selective(table)
    found["per_source"] = _per_source(table, classes)
    return found


def networks(table: Table, bundle: Bundle) -> dict[str, Any]:
    """Each network's own figures."""
    return {
        network.name: metrics.classification(table.labels, table.each[:, m], bundle.manifest.classes)
        for m, network in enumerate(bundle.manifest.networks)
    }


def stranger_answers(bundle: Bundle, predictor: Predictor, asked: list[Answer], root: Path) -> dict[str, Any]:
    """What comes back for pictures that are no chest films, for inverted and turned films, and for other diseases."""
    films = [a.item for a in asked if a.analysis and a.item.label in bundle.manifest.classes][
        :: max(len(asked) // SAMPLE, 1)
    ]
    pixels = [np.asarray(Image.open(root / item.image).convert("L")) for item in films]
    groups = {f"drawn/{name}": [picture] for name, picture in strangers.drawn().items()}
    groups["inverted films"] = [strangers.inverted(p) for p in pixels]
    groups["films on their side"] = [strangers.on_its_side(p) for p in pixels]
    found = {name: _fate([_said(bundle, predictor, p) for p in pictures]) for name, pictures in groups.items()}
    others = [_code(a) for a in asked if a.item.label == index.OTHER]
    return found | ({"other disease": _fate(others)} if others else {})


def _said(bundle: Bundle, predictor: Predictor, pixels: np.ndarray) -> str:
    try:
        said = analyze(strangers.png(pixels), predictor, bundle).analysis
    except Rejected as error:
        return error.code
    return "uncertain" if said.uncertain else "sure"


def _code(answer: Answer) -> str:
    if answer.analysis is None:
        return answer.refused
    return "uncertain" if answer.analysis.uncertain else "sure"


def _fate(codes: list[str]) -> dict[str, Any]:
    counts = Counter(codes)
    refused = len(codes) - counts["uncertain"] - counts["sure"]
    return {"images": len(codes), "refused": refused, "answers": dict(counts)}


def _sets(table: Table, classes: list[str]) -> dict[str, Any]:
    """How often the true class is in the prediction set, and how large the sets are."""
    said = [a.analysis for a in table.answers if a.analysis is not None]
    hit = np.array([classes[k] in x.prediction_set for k, x in zip(table.labels, said, strict=True)])
    sizes = Counter(len(x.prediction_set) for x in said)
    return {
        "stated_coverage": said[0].coverage,
        "coverage": float(hit.mean()),
        "coverage_per_class": {
            c: float(hit[table.labels == k].mean()) for k, c in enumerate(classes) if (table.labels == k).any()
        },
        "mean_size": statistics.fmean(len(x.prediction_set) for x in said),
        "sizes": {str(size): sizes[size] for size in sorted(sizes)},
    }


def _selective(table: Table) -> dict[str, Any]:
    """Accuracy of sure and of unsure answers, and of the most confident shares."""
    right = table.together.argmax(axis=1) == table.labels
    sure = np.array([not a.analysis.uncertain for a in table.answers if a.analysis is not None])
    order = np.argsort(table.together.max(axis=1))[::-1]
    return {
        "sure_share": float(sure.mean()),
        "accuracy_sure": float(right[sure].mean()) if sure.any() else None,
        "accuracy_unsure": float(right[~sure].mean()) if (~sure).any() else None,
        "accuracy_at_coverage": {
            f"{share:.1f}": float(right[order[: max(int(len(order) * share), 1)]].mean())
            for share in (0.5, 0.7, 0.9, 1.0)
        },
    }


def _per_source(table: Table, classes: list[str]) -> dict[str, Any]:
    """Accuracy within each source, and macro-F1 over the classes which that source has."""
    found = {}
    sources = np.array([a.item.source for a in table.answers])
    for source in sorted(set(sources)):
        here = sources == source
        labels, said = table.labels[here], table.together[here].argmax(axis=1)
        present = sorted(set(labels.tolist()))
        found[source] = {
            "images": int(here.sum()),
            "classes": [classes[k] for k in present],
            "accuracy": float((labels == said).mean()),
            "macro_f1": float(metrics.f1(labels, said, len(classes))[present].mean()),
        }
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return None if np.isnan(value) else round(value, 4)
    return value
