"""The audit in words and tables for the model card: every sentence is made from the figures, the bad ones too."""

from __future__ import annotations

from collections.abc import Sequence

from training.audit_words import ASKED, CHANGED, Figures
from training.audit_words import figure as _f
from training.audit_words import percent as _percent

SHOWN = {
    "lungs": "lungs (what every answer is made from)",
    "lungs_removed": "lungs removed: only the rim by which their mask was grown",
    "background_only": "background only: everything but the lungs",
    "silhouette_only": "silhouette only: the outline, filled with an average lung",
    "nothing": "nothing: an empty tensor",
}

MEASURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}


def sections(audit: Figures) -> str:
    """The model card's part "Does it read lungs?" in Markdown."""
    said = audit["explained"]
    parts = [
        "## Does it read lungs?",
        f"{audit['films']['answered']} films of the test split, this bundle, {audit['runtime']['name']} "
        f"{audit['runtime']['precision']}. Intervals are 95 %, over patients. Thumbnails and probes are fitted on "
        "training films and stand beside what can be guessed without looking.",
        "### Parts of the film",
        _parts(audit["parts"]),
        said["parts"],
        _thumbnails(audit["thumbnails"]),
        said["thumbnails"],
        "### Leave one source out",
        _left_out(audit["leave_one_source_out"]),
        said["leave_one_source_out"],
        "### Does it know the hospital?",
        _probes(audit["probe"]),
        said["probe"],
        "### Where the class maps lie",
        _cam(audit["cam"]),
        said["cam"],
        "### Adults alone, children alone",
        _populations(audit["populations"]),
        said["populations"],
        "### The same film in another file",
        _shifts(audit["shifts"]),
        said["shifts"],
    ]
    return "\n\n".join(part for part in parts if part)


def _parts(found: Figures) -> str:
    rows = [
        (SHOWN[name], *(_with_interval(each, key) for key in MEASURES), _percent(each["same"]), _share(each, "strange"))
        for name, each in found["shown"].items()
    ]
    guess = found["source_majority"]
    rows.append(("no film: the source's most frequent class", *(_f(guess[key]) for key in MEASURES), "-", "-"))
    named = *MEASURES.values(), "same answer as to the lungs", "the gate would refuse"
    head = (f"what is shown ({guess['images']} films)", *named)
    return _table(head, rows)


def _thumbnails(found: Figures) -> str:
    rows = [
        (name, *(_with_interval(found[name], key) for key in MEASURES))
        for name in ("background", "lungs", "silhouette")
    ]
    return _table((f"forest on 32 x 32 pixels, fitted on {found['fitted_on']} films", *MEASURES.values()), rows)


def _left_out(found: Figures) -> str:
    rows = []
    for source, each in found["sources"].items():
        for name in each["evaluable"]:
            without, known = each["without"] or {}, each["with"] or {}
            recall = without.get("recall", {}).get(name)
            text = "not run" if recall is None else f"{_f(recall)} {_interval(without['intervals'][name])}"
            rows.append((source, name, text, _f(known.get("recall", {}).get(name)), _f(each["this_bundle"].get(name))))
        rows += [(source, name, "not evaluable", "-", "-") for name in each["not_evaluable"]]
    head = ("source", "class", "recall without the source", "trained with it", "this bundle, trained with it")
    return _table(head, rows)


def _probes(found: Figures) -> str:
    rows = []
    for name, each in found.items():
        if "probes" not in each:
            rows.append((ASKED[name], "-", "not evaluable", "-"))
            continue
        rows.append((ASKED[name], "majority guess", *_pair(each["majority"])))
        if "knowing_the_class" in each:
            rows.append((ASKED[name], "guess of one who knows the class", *_pair(each["knowing_the_class"])))
        rows += [(ASKED[name], f"features: {network}", *_pair(v)) for network, v in each["probes"].items()]
    return _table(("what is asked", "of", "accuracy", "balanced accuracy"), rows)


def _pair(figures: Figures) -> tuple[str, str]:
    return _f(figures["accuracy"]), _f(figures["balanced_accuracy"])


def _cam(found: Figures) -> str:
    rows = [
        (network, "all" if name == "all" else f"said: {name}", str(each["images"]), *_heat(each))
        for network, of in found["of"].items()
        for name, each in of.items()
    ]
    head = ("network", "films", "count", "share inside", "lift", "quartiles", "over other films' lungs", "peak inside")
    return _table(head, rows)


def _heat(each: Figures) -> tuple[str, ...]:
    if "lift" not in each:
        return ("no heat", *("-",) * 4)
    quartiles = " / ".join(f"{v:.2f}" for v in each["quartiles"])
    lifts = f"{each['lift']:.2f}", quartiles, f"{each['shuffled_lift']:.2f}"
    return _percent(each["share_inside"]), *lifts, _percent(each["peak_inside"])


def _populations(found: Figures) -> str:
    rows = []
    for name, each in found.items():
        for who, figures in each.items():
            recalls = ", ".join(f"{label} {_f(v)}" for label, v in figures["recall"].items())
            named = {"ensemble": "ensemble", "source_majority": "the source's most frequent class"}[who]
            values = (_with_interval(figures, key) for key in MEASURES)
            rows.append((name, str(figures["images"]), named, *values, recalls))
    return _table(("population", "films", "who", *MEASURES.values(), "recalls"), rows)


def _shifts(found: Figures) -> str:
    rows = [
        (CHANGED[name], *(_moves(each) if each["pairs"] else ("-", "-", "-")), _percent(each["refused"]))
        for name, each in found["changes"].items()
    ]
    head = (f"change ({found['answered']} films)", "answers changed", "probability moved", "accuracy", "newly refused")
    return _table(head, rows)


def _moves(each: Figures) -> tuple[str, str, str]:
    low, high = each["changed_interval"]
    changed = f"{_percent(each['changed'])} ({_percent(low)} to {_percent(high)})"
    return changed, _f(each["moved"]), f"{_f(each['accuracy_before'])} to {_f(each['accuracy_after'])}"


def _share(figures: Figures, name: str) -> str:
    return _percent(figures[name]) if name in figures else "-"


def _with_interval(figures: Figures, name: str) -> str:
    return f"{_f(figures[name])} {_interval(figures['intervals'][name])}"


def _interval(edges: Sequence[float] | None) -> str:
    return f"({edges[0]:.3f} to {edges[1]:.3f})" if edges else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
