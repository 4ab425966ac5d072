"""The figures of metrics.json as a page for people: report.html with its plots, and the classic text report."""

from __future__ import annotations

import base64
import csv
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sklearn.metrics import classification_report

from shared.bundles import Bundle
from training import chance, metrics, plots, segmentation
from training import figures as parts
from training.plots import Log

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"
TEXT = "report.txt"
RULES = {  # how figures were made, for the words around them
    "resamples": f"{chance.RESAMPLES:,}",
    "level": f"{100 * chance.LEVEL:g}",
    "bins": metrics.BINS,
    "rare": f"{100 * parts.RARE:g}",
    "apex": f"{100 * segmentation.APEX:g}",
    "good": segmentation.GOOD,
}
CURVES = ("size", "loss", "stop_f1")  # what the learning curves need of a training's log


def write(bundle: Bundle, figures: dict[str, Any], folder: Path, runs: Path | None = None) -> Path:
    """Write report.html, report.txt and one PNG per plot into `folder`; the page's path.

    The page holds its plots and needs no other file. Everything in it comes from `figures`, the manifest and, for the
    learning curves, the logs NETWORK/NETWORK.csv in `runs`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{bundle.identity}, {figures['data']['split']} split"
    drawn = plots.all_of(figures, logs(bundle, runs) if runs else {}, title)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png")
    text = f"{title}\n\n{classic(figures)}"
    (folder / TEXT).write_text(text, encoding="utf-8")
    images = {name: _inline(folder / f"{name}.png") for name in drawn}
    page = template("report.html.j2").render(
        title=title, manifest=bundle.manifest, figures=figures, plots=images, text=text
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def classic(figures: dict[str, Any]) -> str:
    """scikit-learn's classification report of the ensemble and of each network, from their confusion matrices."""
    parts = []
    for name, found in {"ensemble": figures["ensemble"], **figures["networks"]}.items():
        classes, counts = list(found["per_class"]), np.array(found["confusion"])
        true, said = (np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape))
        numbers = range(len(classes))
        said_of = classification_report(true, said, labels=numbers, target_names=classes, digits=4, zero_division=0)
        parts.append(f"{name}\n\n{said_of}")
    return "\n".join(parts)


def logs(bundle: Bundle, runs: Path) -> dict[str, Log]:
    """The logs of the networks' trainings in `runs`; a network without one, or with another kind of log, has none."""
    found = {}
    for network in bundle.manifest.networks:
        path = runs / network.name / f"{network.name}.csv"
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if rows and set(CURVES) <= set(rows[0]):
                found[network.name] = [{key: float(row[key]) for key in CURVES} for row in rows]
    return found


def template(name: str) -> Any:
    """A page's template; values in HTML are escaped, and one that is missing is an error, not a blank."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["rules"] = RULES
    environment.filters |= {"figure": figure, "percent": percent, "between": between, "with_interval": with_interval}
    return environment.get_template(name)


def figure(value: float | None, digits: int = 3) -> str:
    """A figure with three digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share as percent with one digit."""
    return "-" if value is None else f"{100 * value:.1f} %"


def between(interval: list[float] | None) -> str:
    """An interval as `low to high`."""
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def with_interval(found: dict[str, Any], name: str) -> str:
    """The figure `name` of `found` with its interval in brackets, where it has one."""
    interval = found["intervals"].get(name)
    return figure(found[name]) + (f" ({between(interval)})" if interval else "")


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
