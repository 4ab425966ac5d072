"""The model card of a bundle: a page made from its manifest and its figures, so that no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared.bundles import Manifest

WARNING = (
    "Decision support for research and triage. Not a medical device; not a diagnosis. The figures below are of images "
    "from the same collections as the training images: they say little about another hospital."
)


def card(manifest: Manifest, figures: dict[str, Any]) -> str:
    """The model card in Markdown."""
    parts = [
        f"# {manifest.name} {manifest.version}",
        WARNING,
        f"## Use\n\n{manifest.intended_use}\n\nLicence: {manifest.licence}",
        _networks(manifest),
        _data(manifest),
        _results(manifest, figures),
        _classes(figures),
        _sources(figures),
        _lungs(figures),
        _trust(figures),
        _strangers(figures),
    ]
    return "\n\n".join(parts) + "\n"


def _networks(manifest: Manifest) -> str:
    trained = manifest.training_data.get("trained", {})
    rows = [
        (
            network.name,
            network.architecture,
            str(trained[network.name]["minutes"]),
            ", ".join(f"{n} at {size} px" for size, n in trained[network.name]["images_by_size"].items()),
        )
        for network in manifest.networks
    ]
    head = ("network", "architecture", "minutes", "images drawn")
    return "## Networks\n\n" + _table(head, rows)


def _data(manifest: Manifest) -> str:
    made_of = manifest.training_data
    sources = [(name, str(count)) for name, count in sorted(made_of["sources"].items())]
    return f"## Training images\n\nFingerprint of the index: `{made_of['fingerprint']}`.\n\n" + _table(
        ("source", "images (train and stop)"), sources
    )


def _results(manifest: Manifest, figures: dict[str, Any]) -> str:
    named = {"ensemble": figures["ensemble"], **figures["networks"]}
    named |= {f"baseline: {name.replace('_', ' ')}": value for name, value in figures["baselines"].items()}
    rows = [(name, _f(v["accuracy"]), _f(v["macro_f1"])) for name, v in named.items()]
    gate = figures["gate"]
    return (
        f"## Results on the test split\n\n{figures['ensemble']['images']} of {gate['images']} films were answered; the "
        f"quality gate refused {_percent(gate['refusal_rate'])}. Runtime: {figures['runtime']['name']}, "
        f"{figures['runtime']['precision']}.\n\n" + _table(("what", "accuracy", "macro-F1"), rows)
    )


def _classes(figures: dict[str, Any]) -> str:
    found = figures["ensemble"]
    names = list(found["per_class"])
    rows = [
        (name, str(v["images"]), *(_f(v[key]) for key in ("f1", "recall", "precision", "auc")))
        for name, v in found["per_class"].items()
    ]
    counts = [(name, *(str(n) for n in row)) for name, row in zip(names, found["confusion"], strict=True)]
    return (
        "## Classes\n\n"
        + _table(("class", "images", "F1", "recall", "precision", "AUC"), rows)
        + "\n\nRows are the truth, columns what was said:\n\n"
        + _table(("", *names), counts)
    )


def _sources(figures: dict[str, Any]) -> str:
    rows = [
        (name, ", ".join(v["classes"]), str(v["images"]), _f(v["accuracy"]), _f(v["macro_f1"]))
        for name, v in figures["ensemble"]["per_source"].items()
    ]
    return (
        "## Sources\n\nClass and source go together in this data; a source with one class tells whether the ensemble "
        "knows that source, not whether it knows the disease.\n\n"
        + _table(("source", "classes", "images", "accuracy", "macro-F1 of its classes"), rows)
    )


def _lungs(figures: dict[str, Any]) -> str:
    rows = [(kind, str(v["images"]), _f(v["dice"]), _f(v["median"])) for kind, v in figures["lungs"].items()]
    return "## Lungs\n\n" + _table(("masks", "images", "mean Dice", "median"), rows)


def _trust(figures: dict[str, Any]) -> str:
    found, sets, chosen = (
        figures["ensemble"],
        figures["ensemble"]["prediction_set"],
        figures["ensemble"]["selective"],
    )
    rows = [
        ("calibration error (ECE), before the temperature", _f(found["ece_before_temperature"])),
        ("calibration error (ECE)", _f(found["ece"])),
        (
            f"prediction sets hold the true class (stated: {_percent(sets['stated_coverage'])})",
            _percent(sets["coverage"]),
        ),
        ("mean size of a prediction set", _f(sets["mean_size"])),
        ("share of answers that are not marked uncertain", _percent(chosen["sure_share"])),
        ("accuracy of those", _f(chosen["accuracy_sure"])),
        ("accuracy of the uncertain ones", _f(chosen["accuracy_unsure"])),
    ]
    return "## How far to trust an answer\n\n" + _table(("what", "value"), rows)


def _strangers(figures: dict[str, Any]) -> str:
    rows = [
        (name, str(v["images"]), str(v["refused"]), ", ".join(f"{code} {n}" for code, n in v["answers"].items()))
        for name, v in figures["strangers"].items()
    ]
    return "## What is no such film\n\n" + _table(("images", "shown", "refused", "answers"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _f(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
