"""Leave one source out: what a small network says about films of a hospital that it was never trained on.

Only classes that other sources have too can be judged: a network that never saw a class cannot name it, and is not
asked to. The test split is judged, by one network per source and, as the reference, by one trained alike on all.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.bundles import checksum
from shared.errors import Misconfigured
from training import data, index, prepare, scoring, starts, train
from training.audit_figures import rounded, scores
from training.index import Item

REFERENCE = "reference"


def plan(items: list[Item], classes: list[str]) -> dict[str, dict[str, list[str]]]:
    """By source of the test split: its classes that are `evaluable` without it, and those that are `not_evaluable`."""
    found = {}
    for source in sorted({item.source for item in items if item.split == "test" and item.label in classes}):
        own = {item.label for item in items if item.split == "test" and item.source == source} & set(classes)
        others = _learnable(items, classes, source)
        found[source] = {
            "evaluable": [name for name in classes if name in own and name in others],
            "not_evaluable": [name for name in classes if name in own and name not in others],
        }
    return found


def leave_one_out(
    items: list[Item],
    prepared: Path,
    config_path: Path,
    classes: list[str],
    out: Path,
    *,
    minutes: float = 0.0,
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """Train without each source and once with all, `minutes` each, and judge; `out`/<source>.json is kept.

    `sources` names some of them, or `reference`; all by default. A source that is done is not trained again unless the
    index, the configuration or the minutes have changed; one that was interrupted goes on from its checkpoint.
    """
    plans = plan(items, classes)
    _must_be_innocent(config_path)
    wanted = sources or [*(name for name, each in plans.items() if each["evaluable"]), REFERENCE]
    if unknown := set(wanted) - {*plans, REFERENCE}:
        raise Misconfigured(f"no films of {sorted(unknown)} in the test split")
    for name in wanted:
        recipe = _recipe(items, prepared, config_path, minutes)
        if _kept(out / f"{name}.json").get("recipe") != recipe:
            result = _one(items, prepared, config_path, classes, out / name, minutes, recipe)
            text = json.dumps({**rounded(result), "recipe": recipe}, indent=1)
            (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return collect(items, classes, out)


def collect(items: list[Item], classes: list[str], out: Path) -> dict[str, Any]:
    """What is known so far, by source: the recall of each evaluable class, with the source left out and with it.

    `without` is None where no network of this index was trained without the source yet; `with` is the reference.
    """
    print_of = index.fingerprint(items)
    kept = {path.stem: found for path in out.glob("*.json") if _of(found := _kept(path), print_of)}
    reference = kept.get(REFERENCE, {}).get("sources", {})
    found = {}
    for source, each in plan(items, classes).items():
        without = kept.get(source, {}).get("sources", {}).get(source)
        found[source] = {
            **each,
            "without": _over(without, each["evaluable"]),
            "with": _over(reference.get(source), each["evaluable"]),
        }
    return {"minutes": {name: each["recipe"]["minutes"] for name, each in sorted(kept.items())}, "sources": found}


def _one(
    items: list[Item],
    prepared: Path,
    config_path: Path,
    classes: list[str],
    out: Path,
    minutes: float,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """One training in `out`, whose name is the source to leave out, and its figures by source."""
    source = "" if out.name == REFERENCE else out.name
    learnt = _learnable(items, classes, source)
    if _kept(out / "recipe.json") != recipe:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    weights = train.train(items, prepared, config_path, learnt, out, minutes=minutes, leave_out=source)
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    test = data.part(items, prepared, learnt, "test", config["clip"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = starts.finished(weights, config["architecture"], len(learnt)).to(device)
    shown = [i for i, item in enumerate(test.items) if source in ("", item.source)]
    tensors = data.Part(test.items, test.tensors[shown], test.labels, test.clip).at(config["phases"][-1]["size"])
    said = scoring.predict(model, tensors, config["clip"], config["bf16"]).argmax(dim=1).numpy()
    labels, chosen = test.labels.numpy()[shown], [test.items[i] for i in shown]
    here = {name: np.array([i.source == name for i in chosen]) for name in sorted({i.source for i in chosen})}
    return {
        "sources": {
            name: scores(labels[own], said[own], [i for i in chosen if i.source == name], learnt)
            for name, own in here.items()
        }
    }


def _learnable(items: list[Item], classes: list[str], without: str) -> list[str]:
    """The classes that have training images elsewhere."""
    found = {item.label for item in items if item.split == "train" and item.source != without}
    return [name for name in classes if name in found]


def _must_be_innocent(config_path: Path) -> None:
    """A start from a bundle, or a teacher, has learned the labels of every source, also of the one that is left out."""
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    for key, told in (("start", str(config["start"]).startswith("bundle:")), ("teacher", bool(config.get("teacher")))):
        if told:
            raise Misconfigured(f"the {key} of {config_path.name}, {config[key]}, has seen the sources to leave out")


def _recipe(items: list[Item], prepared: Path, config_path: Path, minutes: float) -> dict[str, Any]:
    """What a result depends on."""
    return {
        "fingerprint": index.fingerprint(items),
        "prepared": checksum(prepared / prepare.RECIPE),
        "config": checksum(config_path),
        "minutes": minutes,
    }


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _of(found: dict[str, Any], fingerprint: str) -> bool:
    return found.get("recipe", {}).get("fingerprint") == fingerprint


def _over(figures: dict[str, Any] | None, classes: list[str]) -> dict[str, Any] | None:
    """The recalls of `classes`, their mean, and what was said instead."""
    if figures is None or not classes:
        return None
    kept = {name: figures["recall"][name] for name in classes if name in figures["recall"]}
    intervals = {name: figures["recall_intervals"][name] for name in kept}
    mean = float(np.mean(list(kept.values()))) if kept else None
    return {"images": figures["images"], "recall": kept, "intervals": intervals, "mean": mean, "said": figures["said"]}
