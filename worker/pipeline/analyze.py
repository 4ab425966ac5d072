"""The whole diagnosis on one screen: bytes -> radiograph -> quality -> lungs -> networks -> vote -> values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.bundles import Bundle, Calibration, Manifest, Preprocessing
from shared.errors import BundleError
from shared.schemas import Analysis, LungsView, Stage
from worker.pipeline import decode as decoding
from worker.pipeline import ensemble, lungs, quality, view
from worker.pipeline.decode import Radiograph
from worker.pipeline.ensemble import Vote
from worker.pipeline.lungs import Lungs
from worker.pipeline.predictor import Outputs, Predictor

GRID = 7  # side of the stored class maps: what every network of the ensemble has at 224 pixels

Decode = Callable[[bytes], Radiograph]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """An image that passed the gate: `tensor` float32 [S, S] is what the networks see."""

    radiograph: Radiograph
    lungs: Lungs
    quality: dict[str, float]
    tensor: np.ndarray
    clock: Clock


@dataclass(frozen=True)
class Diagnosis:
    """The answer and what explanations are made from.

    `maps` float16 [M, K, 7, 7] are the class maps on the lungs' crop before any ReLU, networks in the manifest's order.
    """

    analysis: Analysis
    radiograph: Radiograph
    lungs: Lungs
    maps: np.ndarray


class Clock:
    """The stages of one analysis and when each began; tells `report` about every one of them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = time.perf_counter()
        self.stages: list[Stage] = []

    def enter(self, stage: str) -> None:
        """Begin a stage; what `report` raises passes through, which is how an analysis is canceled."""
        self._report(stage)
        self.stages.append(Stage(name=stage, started_s=round(time.perf_counter() - self._began, 4)))


def analyze(
    data: bytes,
    predictor: Predictor,
    bundle: Bundle,
    *,
    decode: Decode = decoding.decode,
    report: Report = lambda stage: None,
) -> Diagnosis:
    """Diagnose one file; Rejected (Unreadable where it holds no image) with a coded reason when that is impossible."""
    prepared = prepare(data, predictor, bundle, decode=decode, report=report)
    prepared.clock.enter("networks")
    outputs = predictor.classify(prepared.tensor[None, None])
    return conclude(prepared, outputs, 0, predictor, bundle)


def prepare(
    data: bytes,
    predictor: Predictor,
    bundle: Bundle,
    *,
    decode: Decode = decoding.decode,
    report: Report = lambda stage: None,
) -> Prepared:
    """Everything before the classifiers; Rejected where the file is no image or the gate refuses it."""
    manifest, clock = bundle.manifest, Clock(report)
    clock.enter("decode")
    radiograph = decode(data)
    clock.enter("quality")
    values = quality.check_image(radiograph, manifest.quality)
    values |= quality.check(view.measure(radiograph.pixels, predictor, manifest.view), manifest.quality)
    clock.enter("lungs")
    found = lungs.find(radiograph.pixels, predictor, manifest.lungs, manifest.preprocessing)
    values |= quality.check_lungs(radiograph, found, manifest.quality)
    tensor = lungs.tensor(radiograph.pixels, found, manifest.preprocessing)
    assert_range(tensor, manifest.preprocessing)
    return Prepared(radiograph, found, values, tensor, clock)


def conclude(prepared: Prepared, outputs: Outputs, index: int, predictor: Predictor, bundle: Bundle) -> Diagnosis:
    """Everything after the classifiers, for image number `index` of the batch that `outputs` answers.

    Rejected where the networks have learned from nothing like it.
    """
    manifest = bundle.manifest
    prepared.clock.enter("vote")
    strange = {} if outputs.ood_scores is None else {"ood_score": float(outputs.ood_scores[index])}
    values = prepared.quality | quality.check(strange, manifest.quality)
    said = ensemble.vote(outputs.logits[:, index], manifest.classes, manifest.calibration)
    analysis = Analysis(
        **_voted(said, _unusual(values, manifest.calibration), manifest),
        coverage=manifest.calibration.coverage,
        quality={name: round(value, 6) for name, value in values.items()},
        lungs=_lungs_view(prepared.lungs),
        bundle=bundle.identity,
        runtime=predictor.runtime,
        stages=prepared.clock.stages,
    )
    return Diagnosis(analysis, prepared.radiograph, prepared.lungs, _grids(outputs.maps[:, index]))


def assert_range(tensor: np.ndarray, preprocessing: Preprocessing) -> None:
    """A tensor float32 [S, S] outside the bundle's range gives silently equal answers: BundleError instead."""
    side, clip = preprocessing.input_size, preprocessing.clip
    inside = tensor[tensor != 0]
    if tensor.shape != (side, side) or tensor.dtype != np.float32:
        raise BundleError(f"a tensor {tensor.dtype} {tensor.shape} where float32 ({side}, {side}) is expected")
    if not inside.size or not np.isfinite(inside).all() or np.abs(inside).max() > clip + 1e-3:
        raise BundleError(f"a tensor that is empty or leaves -{clip}..{clip}")
    if abs(float(inside.mean())) > 0.5 or not 0.3 < float(inside.std()) < 1.5:
        raise BundleError("a tensor that is not standardised inside the lungs")


def _unusual(values: Mapping[str, float], calibration: Calibration) -> tuple[str, ...]:
    """The doubt about a film that passes the gate, but is further from the training films than most."""
    limit = calibration.unusual_ood_score
    return ("unusual_film",) if limit is not None and not values.get("ood_score", 0.0) <= limit else ()


def _voted(said: Vote, doubts: tuple[str, ...], manifest: Manifest) -> dict[str, Any]:
    classes, names = manifest.classes, [network.name for network in manifest.networks]
    doubts = (*said.reasons, *doubts)
    return {
        "top_class": classes[said.top],
        "confidence": said.confidence,
        "margin_top2": said.margin,
        "model_disagreement": said.disagreement,
        "uncertain": bool(doubts),
        "uncertain_because": list(doubts),
        "prediction_set": [name for name, kept in zip(classes, said.included, strict=True) if kept],
        "ensemble": _named(said.together, classes),
        "per_model": {name: _named(p, classes) for name, p in zip(names, said.each, strict=True)},
        "classes": classes,
    }


def _named(probabilities: np.ndarray, classes: list[str]) -> dict[str, float]:
    return {name: float(p) for name, p in zip(classes, probabilities, strict=True)}


def _lungs_view(found: Lungs) -> LungsView:
    area, left, right = found.fractions
    return LungsView(area_fraction=area, left_fraction=left, right_fraction=right, box=found.box)


def _grids(maps: np.ndarray) -> np.ndarray:
    """Class maps [M, K, h, w] as float16 [M, K, 7, 7]."""
    if maps.shape[2:] == (GRID, GRID):
        return maps.astype(np.float16)
    flat = [lungs.resize(grid, GRID) for grid in maps.reshape(-1, *maps.shape[2:])]
    return np.stack(flat).reshape(*maps.shape[:2], GRID, GRID).astype(np.float16)
