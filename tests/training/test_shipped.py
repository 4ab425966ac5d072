"""The bundle that ships: complete, within its bars, and no kinder to the sample film than to any other."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared import bundles
from shared.bundles import Bundle
from shared.errors import Rejected
from shared.settings import ROOT, Settings
from tests.builders import png
from training import bundle, evaluate, index, metrics, sample, screen
from worker.pipeline import decode, lungs, quality
from worker.pipeline.analyze import analyze
from worker.pipeline.predictor import Predictor
from worker.runtimes.torch import TorchPredictor

SAMPLE = ROOT / "docs" / "sample" / "synthetic-radiograph.png"
DATA = Path(os.environ.get("HILUM_DATA", ""))


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return bundles.read(Settings().bundle)


@pytest.fixture(scope="module")
def predictor(shipped: Bundle) -> Predictor:
    return TorchPredictor(shipped)


@pytest.fixture(scope="module")
def figures(shipped: Bundle) -> dict:
    return json.loads((shipped.root / evaluate.METRICS).read_text(encoding="utf-8"))


def test_it_is_small_complete_and_says_what_it_may_be_used_for(shipped: Bundle) -> None:
    assert sum(file.stat().st_size for file in shipped.root.iterdir()) <= bundle.LARGEST_BYTES
    assert [n.architecture for n in shipped.manifest.networks] == ["resnet50", "densenet121", "efficientnet_b0"]
    assert "Research use only" in shipped.manifest.licence
    assert (shipped.root / "LICENCE.txt").read_text() == bundle.LICENCE_FILE.read_text()


def test_its_figures_are_of_these_weights_and_reach_the_bars(shipped: Bundle, figures: dict) -> None:
    assert figures["weights"] == {w.file: w.sha256 for w in shipped.manifest.files}
    assert shipped.manifest.metrics == evaluate.summary(figures)
    ensemble, networks = figures["ensemble"], figures["networks"]
    assert figures["lungs"]["all"]["dice"] >= 0.95
    assert min(ensemble["accuracy"], ensemble["macro_f1"]) >= 0.75
    best = max(network["macro_f1"] for network in networks.values())
    assert ensemble["macro_f1"] > best - 0.002  # one network has three quarters of the vote: the others may not cost
    assert ensemble["ece"] < min(network["ece"] for network in networks.values())
    assert ensemble["macro_f1"] > figures["baselines"]["source_majority"]["macro_f1"]
    assert ensemble["ece"] <= 0.03
    assert figures["gate"]["refusal_rate"] <= 0.02


def test_every_class_is_covered_as_stated(figures: dict) -> None:
    for name, found in figures["ensemble"]["prediction_set"]["per_class"].items():
        assert found["inside"], name


@pytest.mark.parametrize(("group", "share"), [("tuned/", 0.99), ("held out/", 0.99)])
def test_what_is_no_film_is_refused(figures: dict, group: str, share: float) -> None:
    kinds = [kind for name, kind in figures["strangers"].items() if name.startswith(group)]
    assert len(kinds) >= 8
    assert sum(kind["refused"] for kind in kinds) >= share * sum(kind["images"] for kind in kinds)


@pytest.mark.parametrize("way", ["inverted", "turned 90", "turned 180", "turned 270"])
def test_a_film_shown_wrongly_is_refused(figures: dict, way: str) -> None:
    shown = figures["strangers"][f"films/{way}"]
    assert shown["images"] >= 90
    assert shown["refused"] >= 0.95 * shown["images"]


def test_its_gate_limits_what_it_measures(shipped: Bundle) -> None:
    named = {limit.split("_", 1)[1] for limit in shipped.manifest.quality}
    assert named == {check.name for check in quality.CHECKS}


def test_the_sample_film_is_diagnosed(shipped: Bundle, predictor: Predictor) -> None:
    said = analyze(SAMPLE.read_bytes(), predictor, shipped).analysis
    assert sum(said.ensemble.values()) == pytest.approx(1)
    assert min(said.lungs.left_fraction, said.lungs.right_fraction) > 0.05


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "unexposed": lambda p: (p * 0.05).astype(np.uint8),
    "inverted": lambda p: 255 - p,
    "on its side": lambda p: np.rot90(p).copy(),
    "noise over it": lambda p: np.clip(p + np.random.default_rng(0).normal(0, 90, p.shape), 0, 255).astype(np.uint8),
    "a stamp": lambda p: p[::4, ::4].copy(),
    "half of it": lambda p: p[:, :128].copy(),
    "painted": lambda p: np.stack([p, 255 - p, p], axis=-1),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_the_gate_makes_no_exception_for_the_sample(
    shipped: Bundle, predictor: Predictor, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = np.asarray(Image.open(SAMPLE))
    with pytest.raises(Rejected) as caught:
        analyze(png(spoil(pixels)), predictor, shipped)
    assert caught.value.value is not None
    assert caught.value.threshold is not None


def test_photographs_are_refused(shipped: Bundle, predictor: Predictor) -> None:
    from sklearn.datasets import load_sample_images

    for photograph in load_sample_images().images:
        gray = np.asarray(Image.fromarray(photograph).convert("L"))
        for picture in (photograph, gray):
            with pytest.raises(Rejected):
                analyze(png(picture), predictor, shipped)


def test_calibration_is_not_the_identity(shipped: Bundle) -> None:
    decided = shipped.manifest.calibration
    assert decided.temperature != 1
    assert set(decided.quantiles) == set(shipped.manifest.classes)
    assert 0.25 < decided.min_confidence < 1


@pytest.mark.data
def test_real_dicom_files_are_diagnosed_and_the_dog_is_not(shipped: Bundle, predictor: Predictor) -> None:
    for path in sorted((DATA / "dicom").glob("cxr_*.dcm")):
        assert analyze(path.read_bytes(), predictor, shipped).analysis.top_class in shipped.manifest.classes
    with pytest.raises(Rejected):
        analyze((DATA / "dicom" / "ood_dog_thorax_dx_monochrome1.dcm").read_bytes(), predictor, shipped)


@pytest.mark.data
def test_its_training_images_are_those_of_the_index(shipped: Bundle) -> None:
    with (shipped.root / screen.LEFT_OUT).open(newline="", encoding="utf-8") as file:
        gone = {row["id"] for row in csv.DictReader(file) if row["left_out"] == "True"}
    items = [item for item in index.build(DATA / "cxr", [DATA / "cxr-extra"]) if item.id not in gone]
    assert shipped.manifest.training_data["fingerprint"] == index.fingerprint(items)


@pytest.mark.data
def test_real_films_of_the_test_split_are_read_as_the_figures_say(
    shipped: Bundle, predictor: Predictor, figures: dict
) -> None:
    items = [i for i in index.build(DATA / "cxr") if i.split == "test" and i.label in shipped.manifest.classes]
    some = items[::25]
    dices, right, asked = [], 0, 0
    for item in some:
        try:
            said = analyze((DATA / "cxr" / item.image).read_bytes(), predictor, shipped)
        except Rejected:
            continue
        asked += 1
        right += said.analysis.top_class == item.label
        if item.mask:
            true = decode.decode((DATA / "cxr" / item.mask).read_bytes()).pixels > 0.5
            dices.append(metrics.dice(said.lungs.mask, true))
    assert asked > 0.85 * len(some)
    assert np.mean(dices) > 0.92
    assert right / asked == pytest.approx(figures["ensemble"]["accuracy"], abs=0.15)


@pytest.mark.data
def test_the_sample_resembles_no_film_it_was_drawn_from() -> None:
    drawn = np.asarray(Image.open(io.BytesIO(SAMPLE.read_bytes())).resize((64, 64)), np.float32).ravel()
    items = [i for i in index.build(DATA / "cxr") if i.source == sample.SOURCE and i.label == "normal"]
    films = (decode.decode((DATA / "cxr" / i.image).read_bytes()).pixels for i in items[::4])
    closest = max(np.corrcoef(drawn, lungs.resize(lungs.square_of(film), 64).ravel())[0, 1] for film in films)
    assert closest < 0.95
