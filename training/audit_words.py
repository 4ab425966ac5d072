"""The audit in sentences: each is made from the figures and says what they mean, the bad news too."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]

CHANGED = {
    "jpeg_quality_50": "JPEG quality 50",
    "half_size": "half the size",
    "brighter": "brighter (gamma 0.8)",
    "darker": "darker (gamma 1.25)",
    "less_contrast": "a third less contrast",
    "cropped_4_percent": "4 % cut off at every side",
    "black_frame_6_percent": "a black frame of 6 %",
}
ASKED = {
    "source": "source",
    "class": "class",
    "source_of_normals": "source of normal films",
    "source_of_adult_normals": "source of normal films of adults",
}


def explained(audit: Figures) -> dict[str, str]:
    """What each part's figures mean, in sentences that depend on them."""
    return {
        "parts": _about_parts(audit["parts"]),
        "thumbnails": _about_thumbnails(audit["thumbnails"], audit["parts"]),
        "leave_one_source_out": _about_left_out(audit["leave_one_source_out"]),
        "probe": _about_probe(audit["probe"]),
        "cam": _about_cam(audit["cam"]),
        "populations": _about_populations(audit["populations"]),
        "shifts": _about_shifts(audit["shifts"]),
    }


def _about_parts(found: Figures) -> str:
    shown, guess = found["shown"], found["source_majority"]["accuracy"]
    whole, rim, back, outline, nothing = (
        shown[name] for name in ("lungs", "lungs_removed", "background_only", "silhouette_only", "nothing")
    )
    constant, gap = nothing["balanced_accuracy"], 100 * (whole["accuracy"] - rim["accuracy"])
    said = [
        f"Without the lungs' pixels accuracy goes from {figure(whole['accuracy'])} to {figure(rim['accuracy'])}: "
        f"{gap:.1f} points rest on what is inside the found lungs. {_beside(rim, constant, 'The rim that stays')} The "
        "classifiers get zeros outside the lungs, so without the rim too they see nothing and give one answer to all "
        f"({figure(nothing['accuracy'])}).",
        f"Shown the background instead they reach {figure(back['accuracy'])}. "
        f"{_beside(back, constant, 'The background')} {_beside(outline, constant, 'The outline')}",
        "No network was trained on any of these parts: a low figure says that it cannot answer from the part, not that "
        "there is nothing in it. What is in it the next table says.",
    ]
    if whole["accuracy"] <= guess:
        said.append(f"Guessing each source's most frequent class is right more often ({figure(guess)}) than the lungs.")
    return " ".join(said)


def _beside(figures: Figures, constant: float, name: str) -> str:
    """Whether a part says more than one answer for all would, as far as its interval goes."""
    low, mean = figures["intervals"]["balanced_accuracy"][0], figures["balanced_accuracy"]
    more = "says something" if low > constant else "says no more than chance"
    return f"{name} {more} (balanced accuracy {figure(mean)}, one answer for all: {figure(constant)})."


def _about_thumbnails(found: Figures, parts: Figures) -> str:
    back, lungs, outline = (found[name]["accuracy"] for name in ("background", "lungs", "silhouette"))
    whole = parts["shown"]["lungs"]["accuracy"]
    than = "no less than" if back >= lungs else "less than"
    return (
        f"A random forest on 32 x 32 pixels of the background alone is right on {percent(back)} of the test films, "
        f"{than} on the lungs themselves ({percent(lungs)}), and on the outline alone on {percent(outline)}. What "
        "surrounds the lungs (marks, posture, borders, exposure) and their outline (age, size, how the mask was found) "
        "tell the class of these collections without any disease being read: masking keeps the first from the "
        f"networks, the second it cannot. The ensemble's {percent(whole)} on masked lungs is {_ahead(whole, back)} the "
        f"first and {_ahead(whole, outline)} the second."
    )


def _ahead(whole: float, other: float) -> str:
    gap = 100 * (whole - other)
    return f"{gap:.1f} points above" if gap > 0 else f"{-gap:.1f} points below"


def _about_left_out(found: Figures) -> str:
    done = {name: each for name, each in found["sources"].items() if each["without"] and each["without"]["recall"]}
    closed = sorted({name for each in found["sources"].values() for name in each["not_evaluable"]})
    said = []
    if closed:
        said.append(f"Not evaluable, because one source alone has it in training: {', '.join(closed)}.")
    if not done:
        return " ".join([*said, "No training without a source has been made for this index."])
    pairs = [(each["without"]["mean"], each["with"]["mean"]) for each in done.values() if each["with"]]
    mean = sum(each["without"]["mean"] for each in done.values()) / len(done)
    text = f"A hospital that training never saw: the mean recall over {len(done)} sources is {figure(mean)}"
    if len(pairs) == len(done):
        known = sum(b for _, b in pairs) / len(pairs)
        text += f", where the same training with all sources has {figure(known)}"
        text += _verdict(mean, known)
    worst = min(done, key=lambda name: done[name]["without"]["mean"])
    said.append(f"{text}. The worst is {worst} ({figure(done[worst]['without']['mean'])}).")
    return " ".join(said)


def _verdict(without: float, known: float) -> str:
    if without < 0.5 * known:
        return ": most of what looks like reading a disease is knowing its source"
    if without < 0.9 * known:
        return ": part of what looks like reading a disease is knowing its source"
    return ""


def _about_probe(found: Figures) -> str:
    source, said = found["source"], []
    if "probes" in source:
        ours, knowing = source["probes"]["together"]["accuracy"], source["knowing_the_class"]["accuracy"]
        said.append(
            f"A linear probe on the features names the source of {percent(ours)} of the films; who knew the true class "
            f"and nothing else would name {percent(knowing)}"
            + (": the features hold the hospital beside the disease." if ours > knowing else ".")
        )
    for name in ("source_of_normals", "source_of_adult_normals"):
        if "probes" in found[name]:
            ours, guess = found[name]["probes"]["together"], found[name]["majority"]
            said.append(
                f"Asked for the {ASKED[name]}, where no disease can help, its balanced accuracy is "
                f"{figure(ours['balanced_accuracy'])} (guess: {figure(guess['balanced_accuracy'])})."
            )
    return " ".join(said) or "There are too few sources for a probe."


def _about_cam(found: Figures) -> str:
    whole = found["of"]["ensemble"].get("all", {})
    if "lift" not in whole:
        return "The class maps hold no heat."
    near = whole["lift"] <= whole["shuffled_lift"] + 0.02
    return (
        f"{percent(whole['share_inside'])} of the ensemble's heat lies inside the lungs, which are "
        f"{percent(found['lungs_area_share'])} of the crop: a lift of {whole['lift']:.2f}, where 1 is heat spread "
        f"evenly and {found['ceiling']:.2f} heat inside the lungs alone. Over the lungs of other films it would be "
        f"{whole['shuffled_lift']:.2f}: the heat {'hardly follows the film' if near else 'follows the film a little'}. "
        "A cell of a class map is a seventh of the crop wide and has looked at much more than itself; no finer claim "
        "can be made."
    )


def _about_populations(found: Figures) -> str:
    said = []
    for name, each in found.items():
        ours, guess = each["ensemble"], each["source_majority"]
        word = {"adult": "On adults", "child": "On children"}.get(name, "Where the age is unknown")
        low = ours["intervals"]["balanced_accuracy"][0]
        clearly = "above" if low > guess["balanced_accuracy"] else "not clearly above"
        said.append(
            f"{word} balanced accuracy is {figure(ours['balanced_accuracy'])}, {clearly} the guess from the source "
            f"({figure(guess['balanced_accuracy'])})."
        )
    return " ".join(said)


def _about_shifts(found: Figures) -> str:
    changed = {name: each["changed"] for name, each in found["changes"].items() if each["pairs"]}
    if not changed:
        return "No film of the sample was answered."
    worst = max(changed, key=lambda name: changed[name])
    return (
        f"None of these changes the chest, yet {percent(min(changed.values()))} to {percent(changed[worst])} of the "
        f"answers change with it (most: {CHANGED[worst]}); what they turned into is in audit.json."
    )


def figure(value: float | None) -> str:
    """A share or a score with three digits."""
    return "-" if value is None else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %"
