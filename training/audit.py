"""Does the model read lungs? Every part of the audit of a stored bundle, into the bundle's audit.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.bundles import Bundle, checksum
from shared.errors import Misconfigured
from training import audit_words, baselines, index, prepare
from training.audit_cam import cam
from training.audit_figures import rounded, scores
from training.audit_leave_one_out import collect
from training.audit_look import Looks, look, together
from training.audit_probe import probe, training_features
from training.audit_shifts import shifts
from training.audit_thumbnails import thumbnails
from training.figures import RARE
from training.index import Item
from worker.pipeline.predictor import Predictor

AUDIT = "audit.json"
LEAVE_ONE_OUT = "leave-one-out"  # folder among the runs
RECIPE = 1  # another number discards what earlier code has kept
POPULATIONS = ("adult", "child", "unknown")


@dataclass(frozen=True)
class Sizes:
    """How many films each part looks at: together some seven minutes of two cores for 1,800 test films.

    `parts` test films are shown in parts, `probe` training films give features, `forest` training films teach the cheap
    classifiers, `shifts` test films are changed.
    """

    parts: int = 600
    probe: int = 1500
    forest: int = 1500
    shifts: int = 100


def audit(
    bundle: Bundle,
    predictor: Predictor,
    items: list[Item],
    root: Path,
    prepared: Path,
    runs: Path,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Compute and write every part; what is done is kept in `runs`/audit, so that an interrupted audit goes on.

    Leave-one-source-out trainings are not made here but read from `runs`/leave-one-out. Misconfigured where `prepared`
    is of another lungs network, preprocessing or index.
    """
    sizes = sizes or Sizes()
    prepare.must_match(prepared, bundle.manifest.lungs, bundle.manifest.preprocessing)
    if len(prepare.read_rows(prepared)) != len(items):
        raise Misconfigured(f"{prepared} holds other images than the index: prepare them")
    kept = runs / "audit" / _key(bundle, predictor, items, prepared, sizes)
    looks = look(bundle, predictor, items, root, prepared, kept, parts=sizes.parts)
    found = {
        "weights": {w.file: w.sha256 for w in bundle.manifest.files},
        "data": {"fingerprint": index.fingerprint(items), "split": "test"},
        "runtime": predictor.runtime.model_dump(),
        "films": {"answered": len(looks.items), "refused": looks.refused, "seen": asdict(sizes)},
        "parts": parts(looks, bundle, items),
        "leave_one_source_out": _left_out(items, looks, bundle, runs / LEAVE_ONE_OUT),
        "cam": cam(looks, bundle),
        "populations": populations(looks, bundle, items),
        **_learned(bundle, predictor, items, root, prepared, looks, kept, sizes),
    }
    found = rounded(found)
    found["explained"] = audit_words.explained(found)
    (bundle.root / AUDIT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def parts(looks: Looks, bundle: Bundle, items: list[Item]) -> dict[str, Any]:
    """What the ensemble says to the whole and to the parts of the same films, beside the guess from the source.

    `same` is the share of films whose answer is that to the whole film, `strange` of those that a gate which knows
    strange features would refuse. `nothing` is an empty tensor: one answer for all, and what is left when a classifier
    that sees nothing but lungs loses them to the last pixel.
    """
    classes, shown = bundle.manifest.classes, looks.sampled
    films, labels = [looks.items[i] for i in shown], looks.labels[shown]
    answers = {"lungs": looks.logits[shown], **looks.parts, "nothing": np.repeat(looks.nothing[None], len(shown), 0)}
    said = {name: together(logits, bundle).argmax(axis=1) for name, logits in answers.items()}
    guess = baselines.source_majority(baselines.training(items, classes), films, classes).argmax(axis=1)
    return {
        "shown": {
            name: scores(labels, k, films, classes)
            | {"same": float((k == said["lungs"]).mean())}
            | ({"strange": float(looks.strange[name].mean())} if bundle.manifest.ood and name in looks.strange else {})
            for name, k in said.items()
        },
        "source_majority": scores(labels, guess, films, classes),
    }


def populations(looks: Looks, bundle: Bundle, items: list[Item]) -> dict[str, Any]:
    """The ensemble's figures on adults alone and on children alone, beside the guess from the source on the same films.

    Age and class go together in public data; within one of them no answer can be had from the age. Classes that are
    rare in a population are left out there, and its guess is made from its own training films, as `evaluate` does.
    """
    classes, said = bundle.manifest.classes, together(looks.logits, bundle).argmax(axis=1)
    found = {}
    for name in POPULATIONS:
        own = np.array([item.population == name for item in looks.items])
        counts = np.bincount(looks.labels[own], minlength=len(classes))
        common = np.flatnonzero(counts > RARE * counts.sum())
        train = [item for item in baselines.training(items, classes) if item.population == name]
        here = np.flatnonzero(own & np.isin(looks.labels, common))
        if not len(here) or not train:
            continue
        films = [looks.items[i] for i in here]
        guess = baselines.source_majority(train, films, classes).argmax(axis=1)
        found[name] = {
            "ensemble": scores(looks.labels[here], said[here], films, classes),
            "source_majority": scores(looks.labels[here], guess, films, classes),
        }
    return found


def _learned(
    bundle: Bundle,
    predictor: Predictor,
    items: list[Item],
    root: Path,
    prepared: Path,
    looks: Looks,
    kept: Path,
    sizes: Sizes,
) -> dict[str, Any]:
    """The parts that must look at films again or fit something to them; each is kept as a file."""
    classes, clip = bundle.manifest.classes, bundle.manifest.preprocessing.clip
    names = [network.name for network in bundle.manifest.networks]

    def probed() -> dict[str, Any]:
        path = kept / "features.npz"
        fit, features = training_features(bundle, predictor, items, prepared, path, films=sizes.probe)
        return probe(fit, features, looks, names)

    makers = {
        "thumbnails": lambda: thumbnails(items, root, prepared, classes, clip, films=sizes.forest),
        "probe": probed,
        "shifts": lambda: shifts(bundle, predictor, items, root, films=sizes.shifts),
    }
    return {name: _once(kept / f"{name}.json", make) for name, make in makers.items()}


def _left_out(items: list[Item], looks: Looks, bundle: Bundle, out: Path) -> dict[str, Any]:
    """The trainings that were made, beside the recall of this bundle on the same source, which it was trained on."""
    classes, said = bundle.manifest.classes, together(looks.logits, bundle).argmax(axis=1)
    found = collect(items, classes, out)
    sources = np.array([item.source for item in looks.items])
    for source, each in found["sources"].items():
        right = {}
        for name in each["evaluable"]:
            here = (sources == source) & (looks.labels == classes.index(name))
            right[name] = float((said[here] == looks.labels[here]).mean()) if here.any() else None
        each["this_bundle"] = right
    return found


def _key(bundle: Bundle, predictor: Predictor, items: list[Item], prepared: Path, sizes: Sizes) -> str:
    """What the kept files depend on, as a folder's name."""
    story = {"name", "version", "training_data", "metrics", "intended_use", "licence", "created_at"}
    depends = [
        bundle.manifest.model_dump_json(exclude=story),
        predictor.runtime.model_dump_json(),
        index.fingerprint(items),
        checksum(prepared / prepare.RECIPE),
        json.dumps([asdict(sizes), RECIPE]),
    ]
    return hashlib.sha256("\n".join(depends).encode()).hexdigest()[:16]


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from the file if it is there."""
    if not path.is_file():
        path.write_text(json.dumps(rounded(make())), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))
