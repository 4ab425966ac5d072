"""Put trained weights into a bundle: a draft to be calibrated and evaluated, then the release."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared import bundles
from shared.bundles import Bundle, Calibration, Manifest, Network, Preprocessing
from shared.errors import BundleError
from training import audit, card, evaluate, index, prepare, screen, starts, train_view
from training.index import Item

INTENDED_USE = (
    "Research and triage support on frontal chest radiographs of four classes. Not a medical device, not a diagnosis: "
    "a qualified person must read the image. Classes and sources are confounded in the training data."
)
LICENCE = (
    "Research use only. The weights were made from public data sets of which a part is under non-commercial terms "
    "(CC BY-NC-SA) or without a stated licence; see LICENCE.txt."
)
LICENCE_FILE = Path(__file__).parent / "configs" / "bundle-licence.txt"
CARD = "model-card.md"
LARGEST_BYTES = 80_000_000


def draft(items: list[Item], runs: Path, configs: Path, names: list[str], *, name: str, version: str) -> Bundle:
    """The trained weights in `runs`/bundle under a manifest without calibration, limits or figures."""
    root = runs / "bundle"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    weights = shutil.copyfile(runs / "lungs" / "lungs.safetensors", root / "lungs.safetensors")
    view = runs / "view" / "view.safetensors"
    if view.is_file():
        shutil.copyfile(view, root / view.name)
    _keep(screen.LEFT_OUT, runs, root)
    manifest = Manifest(
        name=name,
        version=version,
        classes=index.classes(items),
        networks=[_network(n, runs, configs, root) for n in names],
        lungs=prepare.lungs_network(configs / "lungs.toml", weights),
        view=train_view.view_network(configs / "view.toml", view) if view.is_file() else None,
        preprocessing=Preprocessing.model_validate({}),
        calibration=Calibration(),
        quality={},
        training_data=_story(items, runs, configs, names)
        | ({"view": train_view.story(configs / "view.toml", view)} if view.is_file() else {}),
        intended_use=INTENDED_USE,
        licence=LICENCE,
        created_at=datetime.now(UTC).replace(microsecond=0),
    )
    return bundles.write(root, manifest)


def release(made: Bundle, folder: Path) -> Bundle:
    """The finished draft in `folder`/<name>/<version>: weights, figures, report, card; BundleError where one lacks."""
    if not made.manifest.calibration.quantiles or not made.manifest.quality:
        raise BundleError("calibrate the draft before its release")
    figures, audited = _of_these_weights(made, evaluate.METRICS), _of_these_weights(made, audit.AUDIT)
    target = folder / made.manifest.name / made.manifest.version
    target.mkdir(parents=True, exist_ok=True)
    for weights in made.manifest.files:
        shutil.copyfile(made.path(weights), target / weights.file)
    for name in (evaluate.METRICS, audit.AUDIT):
        shutil.copyfile(made.root / name, target / name)
    shutil.copytree(made.root / evaluate.REPORT, target / evaluate.REPORT, dirs_exist_ok=True)
    _keep(screen.LEFT_OUT, made.root, target)
    shutil.copyfile(LICENCE_FILE, target / "LICENCE.txt")
    released = bundles.write(target, made.manifest.model_copy(update={"metrics": evaluate.summary(figures)}))
    (target / CARD).write_text(card.card(released.manifest, figures, audited), encoding="utf-8")
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    if size > LARGEST_BYTES:
        raise BundleError(f"the bundle has {size} bytes, more than {LARGEST_BYTES}")
    return released


def _of_these_weights(made: Bundle, name: str) -> dict[str, Any]:
    """The figures in a file of the draft; BundleError where there are none, or they are of other weights."""
    path = made.root / name
    if not path.is_file():
        raise BundleError(f"{name} is missing: evaluate and audit the draft before its release")
    figures = json.loads(path.read_text(encoding="utf-8"))
    if figures["weights"] != {w.file: w.sha256 for w in made.manifest.files}:
        raise BundleError(f"{name} is of other weights")
    return figures


def _keep(name: str, source: Path, target: Path) -> None:
    """Copy a file that not every training has."""
    if (source / name).is_file():
        shutil.copyfile(source / name, target / name)


def _network(name: str, runs: Path, configs: Path, root: Path) -> Network:
    config = tomllib.loads((configs / f"{name}.toml").read_text(encoding="utf-8"))
    path = shutil.copyfile(runs / name / f"{name}.safetensors", root / f"{name}.safetensors")
    return Network(
        name=config["name"], architecture=config["architecture"], file=path.name, sha256=bundles.checksum(path)
    )


def _story(items: list[Item], runs: Path, configs: Path, names: list[str]) -> dict[str, Any]:
    """From which images and by which training the weights came."""
    splits = Counter(f"{item.split}/{item.label}" for item in items)
    settings = {n: tomllib.loads((configs / f"{n}.toml").read_text(encoding="utf-8")) for n in ("lungs", *names)}
    return {
        "fingerprint": index.fingerprint(items),
        "images": dict(sorted(splits.items())),
        "sources": dict(Counter(item.source for item in items if item.split in ("train", "stop"))),
        "licences": _licences(items),
        "starts": {n: starts.told(settings[n]) for n in names},
        "configs": settings,
        "trained": {n: _rounds(runs / n / f"{n}.csv") for n in names},
    }


def _licences(items: list[Item]) -> dict[str, str]:
    """The terms of each source as the data set states them; where they differ by image, with the counts."""
    found: dict[str, Counter[str]] = {}
    for item in items:
        found.setdefault(item.source, Counter())[item.licence or "not stated"] += 1
    return {
        source: next(iter(terms)) if len(terms) == 1 else "; ".join(f"{t}: {n}" for t, n in terms.most_common())
        for source, terms in sorted(found.items())
    }


def _rounds(path: Path) -> dict[str, Any]:
    """What the log says: images drawn by size, minutes, and the best score on the stop fold at the serving size."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images: Counter[str] = Counter()
    for row in rows:
        images[row["size"]] += int(row["images"])
    last = max(int(row["size"]) for row in rows)
    return {
        "images_by_size": dict(images),
        "minutes": round(sum(float(row["minutes"]) for row in rows), 1),
        "best_stop_f1": max(float(row["stop_f1"]) for row in rows if int(row["size"]) == last),
    }
