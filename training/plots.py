"""The figures of metrics.json as pictures; colours are those of Okabe and Ito, which the colour-blind tell apart."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
GRAY = "#6e6e6e"
DPI = 130

Log = list[dict[str, float]]

matplotlib.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.grid": True, "grid.alpha": 0.25})


def all_of(figures: dict[str, Any], logs: dict[str, Log], title: str) -> dict[str, Figure]:
    """Every plot that the figures, and the trainings' logs by network, allow; `title` heads each of them."""
    makers: dict[str, Callable[[dict[str, Any], str], Figure]] = {
        "confusion": confusion,
        "roc": roc,
        "reliability": reliability,
        "risk-coverage": risk_coverage,
        "prediction-sets": prediction_sets,
        "sources": sources,
        "lungs": lungs,
    }
    made = {name: make(figures, title) for name, make in makers.items()}
    return made | ({"learning": learning(logs, title)} if logs else {})


def confusion(figures: dict[str, Any], title: str) -> Figure:
    """The confusion matrix of the ensemble: counts, shaded by their share of the true class."""
    counts, names = np.array(figures["ensemble"]["confusion"]), list(figures["ensemble"]["per_class"])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(title, "confusion matrix of the ensemble", (6.4, 5.6))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = share[row, column] > 0.55
        text = f"{count}\n{100 * share[row, column]:.0f} %"
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(names)), [_words(name) for name in names], rotation=20, ha="right")
    axes.set_yticks(range(len(names)), [_words(name) for name in names])
    axes.set(xlabel="said", ylabel="true")
    axes.grid(False)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def roc(figures: dict[str, Any], title: str) -> Figure:
    """One panel per class: each class against the others, ensemble and networks."""
    names = list(figures["ensemble"]["per_class"])
    figure, panels = _panels(title, "ROC curves, each class against the rest", len(names))
    for name, axes in zip(names, panels, strict=False):
        for i, (network, found) in enumerate(figures["networks"].items(), start=1):
            _curve(axes, found, name, network, color=COLOURS[i % 7], linestyle=LINES[i % 5], linewidth=1)
        _curve(axes, figures["ensemble"], name, "ensemble", color=COLOURS[0], linewidth=2.2)
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
        axes.set(title=_words(name), xlabel="false positive rate", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01))
        axes.legend(fontsize=8, loc="lower right", title="area under the curve", title_fontsize=8)
    return figure


def reliability(figures: dict[str, Any], title: str) -> Figure:
    """Confidence against accuracy in fifteen bins, before and after the temperature."""
    found = figures["ensemble"]
    figure, panels = _panels(title, "reliability of the ensemble", 2)
    for axes, key, words in zip(panels, ("_before_temperature", ""), ("before", "after"), strict=True):
        bins, floor = found[f"reliability{key}"], found[f"ece_floor{key}"]
        shares = np.array([b["images"] for b in bins]) / found["images"]
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        axes.bar([(b["from"] + b["to"]) / 2 for b in bins], shares, 1 / 15, color="#56B4E9", alpha=0.45, zorder=1)
        axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", zorder=2)
        axes.plot(x, y, color=COLOURS[1], marker="o", zorder=3)
        axes.set(xlabel="confidence", ylabel="accuracy (line), share of images (bars)", xlim=(0, 1), ylim=(0, 1.01))
        axes.set_title(
            f"{words} the temperature: ECE {found[f'ece{key}']:.3f}\n"
            f"by chance alone {floor['mean']:.3f}, at most {floor['p95']:.3f} in 19 of 20"
        )
    return figure


def risk_coverage(figures: dict[str, Any], title: str) -> Figure:
    """The error rate of the most confident answers, by their share."""
    figure, axes = _figure(title, "risk and coverage", (6.4, 4.6))
    for i, (name, found) in enumerate(_systems(figures).items()):
        curve, area = found["selective"]["risk_coverage"], found["selective"]["aurc"]
        style: dict[str, Any] = {
            "color": COLOURS[i % 7],
            "linestyle": LINES[i % 5],
            "linewidth": 2.2 if i == 0 else 1.2,
        }
        axes.plot(curve["coverage"], curve["risk"], label=f"{name} (area {area:.3f})", **style)
    sure = figures["ensemble"]["selective"]
    if sure["accuracy_sure"] is not None:
        axes.plot(sure["sure_share"], 1 - sure["accuracy_sure"], "k*", markersize=11, label="not marked uncertain")
    axes.set(xlabel="share of the films answered, most confident first", ylabel="error rate", xlim=(0, 1.01))
    axes.set_ylim(0, 1.5 * max(found["selective"]["risk_coverage"]["risk"][-1] for found in _systems(figures).values()))
    axes.legend(fontsize=8)
    return figure


def prediction_sets(figures: dict[str, Any], title: str) -> Figure:
    """Coverage of each class beside the exact interval that chance allows."""
    found = figures["ensemble"]["prediction_set"]
    figure, axes = _figure(title, "coverage of the prediction sets", (6.4, 3.6))
    for row, one in enumerate(found["per_class"].values()):
        low, high = one["interval"]
        axes.plot([low, high], [row, row], color=COLOURS[5], linewidth=9, solid_capstyle="butt", alpha=0.6)
        axes.plot(one["coverage"], row, "o" if one["inside"] else "X", color=COLOURS[0 if one["inside"] else 1])
    axes.axvline(found["stated_coverage"], color=GRAY, linestyle=":")
    names = [f"{_words(name)} (n = {one['images']})" for name, one in found["per_class"].items()]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="share of films whose true class is in the set; bar: 95 % of chance", ylim=(len(names) - 0.5, -0.5))
    return figure


def sources(figures: dict[str, Any], title: str) -> Figure:
    """Accuracy within each source with its interval, and that of guessing the source's most frequent class."""
    found, guess = figures["ensemble"]["per_source"], figures["baselines"]["source_majority"]["per_source"]
    figure, axes = _figure(title, "accuracy by source", (7.2, 0.9 + 0.55 * len(found)))
    names = list(found)
    for row, name in enumerate(names):
        one = found[name]
        axes.barh(row, one["accuracy"], color=COLOURS[0], alpha=0.75, height=0.6)
        axes.plot(one["intervals"]["accuracy"], [row, row], color="black", linewidth=1.5)
        label: dict[str, Any] = {"label": "guessing the source's class"} if row == 0 else {}
        axes.plot(guess[name]["accuracy"], row, "D", color=COLOURS[1], markeredgecolor="white", markersize=8, **label)
    axes.set_yticks(range(len(names)), [f"{name}\n({found[name]['images']} images)" for name in names], fontsize=8)
    axes.set(xlabel="accuracy (line: 95 % interval)", xlim=(0, 1.03), ylim=(len(names) - 0.5, -0.5))
    figure.legend(fontsize=8, loc="outside lower right")
    return figure


def lungs(figures: dict[str, Any], title: str) -> Figure:
    """Mean Dice by the masks' convention: whole, in the region of the heart, elsewhere."""
    found = figures["lungs"]
    figure, axes = _figure(title, "Dice of the lungs", (7.2, 0.9 + 0.7 * len(found)))
    for i, (part, words) in enumerate((("", "whole"), ("heart", "region of the heart"), ("elsewhere", "elsewhere"))):
        for row, one in enumerate(found.values()):
            chosen = one[part] if part else one
            style: dict[str, Any] = {"color": COLOURS[i], "marker": "os^"[i], "linestyle": ""}
            axes.plot(chosen["interval"], [row + 0.2 * (i - 1)] * 2, color=COLOURS[i], linewidth=1.5)
            axes.plot(chosen["dice"], row + 0.2 * (i - 1), label=words if row == 0 else None, **style)
    names = [f"{textwrap.fill(kind, 34)}\n({one['images']} masks)" for kind, one in found.items()]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="mean Dice (line: 95 % interval)", ylim=(len(names) - 0.5, -0.5))
    figure.legend(fontsize=8, loc="outside lower right", ncols=3)
    return figure


def learning(logs: dict[str, Log], title: str) -> Figure:
    """Loss and score on the stop fold by round, one panel per network; dotted where the image size changes."""
    figure, panels = _panels(title, "learning curves", len(logs))
    for (name, rows), axes in zip(logs.items(), panels, strict=False):
        rounds = range(1, len(rows) + 1)  # progress goes back where a training was taken up with more time
        axes.plot(rounds, [row["stop_f1"] for row in rows], color=COLOURS[0], marker=".", label="macro-F1, stop fold")
        axes.set(title=name, xlabel="round", ylabel="macro-F1", ylim=(0, 1))
        right = axes.twinx()
        right.plot(rounds, [row["loss"] for row in rows], color=COLOURS[1], linestyle="--", label="training loss")
        right.set(ylabel="loss")
        right.grid(False)
        for number, (before, after) in enumerate(pairwise(rows), start=1):
            if before["size"] != after["size"]:
                axes.axvline(number + 0.5, color=GRAY, linestyle=":", linewidth=1)
    handles = [*axes.get_lines()[:1], *right.get_lines()]
    figure.legend(handles=handles, fontsize=8, loc="outside lower right", ncols=2)
    return figure


def _curve(axes: Axes, found: dict[str, Any], name: str, label: str, **style: Any) -> None:
    curve, area = found["roc"][name], found["per_class"][name]["auc"]
    if area is not None:
        x, y = curve["false_positive_rate"], curve["true_positive_rate"]
        axes.plot(x, y, label=f"{label} {area:.3f}", **style)


def _systems(figures: dict[str, Any]) -> dict[str, Any]:
    return {"ensemble": figures["ensemble"], **figures["networks"]}


def _figure(title: str, what: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.suptitle(f"{what}\n{title}", fontsize=10)
    return figure, figure.subplots()


def _panels(title: str, what: str, count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.8 * columns, 4.4 * rows), dpi=DPI, layout="constrained")
    figure.suptitle(f"{what}\n{title}", fontsize=10)
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels[:count]


def _words(name: str) -> str:
    return name.replace("_", " ")
