"""The whole diagnosis on the tiny bundle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shared.bundles import Bundle
from shared.errors import BundleError, Rejected, Unreadable
from tests.builders import chest, png
from worker.pipeline import analyze as analysis
from worker.pipeline.analyze import analyze, assert_range, conclude, prepare
from worker.pipeline.predictor import Outputs, Predictor


def test_a_film_becomes_a_diagnosis(film: bytes, predictor: Predictor, tiny: Bundle) -> None:
    said = analyze(film, predictor, tiny)
    result, classes = said.analysis, tiny.manifest.classes
    assert list(result.ensemble) == classes == result.classes
    assert list(result.per_model) == [network.name for network in tiny.manifest.networks]
    assert sum(result.ensemble.values()) == pytest.approx(1)
    assert result.top_class == max(result.ensemble, key=lambda name: result.ensemble[name])
    assert result.confidence == result.ensemble[result.top_class]
    assert result.bundle == tiny.identity
    assert said.maps.shape == (3, 4, 7, 7)
    assert said.maps.dtype == np.float16
    assert said.lungs.mask.shape == said.radiograph.pixels.shape
    assert [stage.name for stage in result.stages] == ["decode", "quality", "lungs", "networks", "vote"]
    assert result.quality["lungs_area"] == pytest.approx(result.lungs.area_fraction, abs=1e-5)


def test_the_class_order_comes_from_the_manifest_alone(film: bytes, predictor: Predictor, tiny: Bundle) -> None:
    turned = tiny.manifest.model_copy(update={"classes": tiny.manifest.classes[::-1]})
    plain = analyze(film, predictor, tiny).analysis
    other = analyze(film, predictor, tiny.model_copy(update={"manifest": turned})).analysis
    assert list(other.ensemble) == tiny.manifest.classes[::-1]
    assert list(other.ensemble.values()) == list(plain.ensemble.values())


def test_stages_are_reported_as_they_begin_and_a_report_can_stop_the_work(
    film: bytes, predictor: Predictor, tiny: Bundle
) -> None:
    seen: list[str] = []

    def report(stage: str) -> None:
        seen.append(stage)
        if stage == "networks":
            raise InterruptedError("canceled")

    with pytest.raises(InterruptedError):
        analyze(film, predictor, tiny, report=report)
    assert seen == ["decode", "quality", "lungs", "networks"]


def test_a_batch_says_what_each_image_alone_says(predictor: Predictor, tiny: Bundle) -> None:
    films = [png(chest(seed)) for seed in (3, 4)]
    ready = [prepare(data, predictor, tiny) for data in films]
    outputs = predictor.classify(np.stack([p.tensor for p in ready])[:, None])
    together = [conclude(p, outputs, i, predictor, tiny).analysis for i, p in enumerate(ready)]
    alone = [analyze(data, predictor, tiny).analysis for data in films]
    for one, other in zip(together, alone, strict=True):
        assert one.ensemble == pytest.approx(other.ensemble, abs=1e-4)
    assert together[0].ensemble != together[1].ensemble


def test_what_is_no_film_is_refused(predictor: Predictor, tiny: Bundle) -> None:
    with pytest.raises(Unreadable):
        analyze(b"not an image", predictor, tiny)
    with pytest.raises(Rejected) as caught:
        analyze(png(np.full((200, 200), 90, np.uint8)), predictor, tiny)
    assert caught.value.code == "low_contrast"
    assert caught.value.threshold == tiny.manifest.quality["min_contrast"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t * 255,  # a range of bytes
        lambda t: (t + 3) / 6,  # a range of 0..1
        lambda t: t[:100, :100],
        lambda t: t.astype(np.float64),
        lambda t: t * 0,
        lambda t: t * np.float32("nan"),
    ],
)
def test_a_tensor_of_another_range_never_reaches_the_networks(film, predictor, tiny, spoil) -> None:
    good = prepare(film, predictor, tiny).tensor
    assert_range(good, tiny.manifest.preprocessing)
    with pytest.raises(BundleError):
        assert_range(spoil(good), tiny.manifest.preprocessing)


def test_prepare_asserts_the_range(film: bytes, predictor: Predictor, tiny: Bundle, monkeypatch) -> None:
    monkeypatch.setattr(analysis.lungs, "tensor", lambda *_: np.full((224, 224), 200, np.float32))
    with pytest.raises(BundleError):
        prepare(film, predictor, tiny)


def test_maps_of_another_side_are_brought_to_seven(film: bytes, predictor: Predictor, tiny: Bundle) -> None:
    ready = prepare(film, predictor, tiny)
    said = predictor.classify(ready.tensor[None, None])
    maps = np.ones((3, 1, 4, 5, 5), np.float32)
    wide = conclude(dataclasses.replace(ready), Outputs(said.logits, maps, said.features), 0, predictor, tiny)
    assert wide.maps.shape == (3, 4, 7, 7)
    np.testing.assert_allclose(wide.maps, 1)
