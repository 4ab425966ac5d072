"""The same figures in torch float32 and in the runtime that serves: what the smaller numbers of the latter cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared.bundles import Bundle
from training import answers, figures, metrics
from training.answers import Answer, Table
from worker.pipeline.predictor import Predictor


def compare(
    bundle: Bundle, predictor: Predictor, asked: list[Answer], reference: Predictor, root: Path
) -> dict[str, Any]:
    """The answers of `predictor`, already `asked`, beside those of the `reference` to the same films.

    Both go the whole way, lungs and gate too. Shifts are changes of the ensemble's probabilities, over films of known
    class that both answered.
    """
    known = [a for a in asked if a.item.label in bundle.manifest.classes]
    again = answers.ask(bundle, reference, [a.item for a in known], root, "reference")
    both = [(a, b) for a, b in zip(known, again, strict=True) if a.analysis and b.analysis]
    mine, theirs = (answers.table(bundle, list(side)) for side in zip(*both, strict=True))
    shift = np.abs(mine.together - theirs.together)
    return {
        "default": _figures(mine, predictor, bundle.manifest.classes),
        "reference": _figures(theirs, reference, bundle.manifest.classes),
        "gate_agreement": float(np.mean([a.refused == b.refused for a, b in zip(known, again, strict=True)])),
        "argmax_agreement": float((mine.together.argmax(axis=1) == theirs.together.argmax(axis=1)).mean()),
        "max_shift": float(shift.max()),
        "mean_shift": float(shift.mean()),
    }


def _figures(table: Table, predictor: Predictor, classes: list[str]) -> dict[str, Any]:
    brief = figures.brief(figures.part(table, classes), table.together, classes)
    return {
        "runtime": predictor.runtime.model_dump(),
        **brief,
        "ece": metrics.ece(table.labels, table.together),
        "nll": metrics.nll(table.labels, table.together),
    }
