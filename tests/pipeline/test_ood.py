"""Distances from the training films: the textbook's, whole or not at all, and what a large one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.spatial.distance import mahalanobis

from shared import bundles
from shared.bundles import Bundle, OodModel
from shared.errors import BundleError, Rejected
from tests.builders import chest, png, tiny_bundle
from worker.pipeline import ood
from worker.pipeline.analyze import analyze
from worker.pipeline.ood import Gaussians
from worker.runtimes import known
from worker.runtimes.choose import open_predictor
from worker.runtimes.torch import TorchPredictor

RNG = np.random.default_rng(0)


def random_gaussians(width: int = 32, axes: int = 6) -> Gaussians:
    mean, across = RNG.normal(size=width), RNG.normal(size=(axes, width))
    return Gaussians(mean.astype("f4"), across.astype("f4"), RNG.normal(size=(4, axes)).astype("f4"))


def knowing(folder: Path, parts: dict[str, np.ndarray] | None = None, **changes: object) -> Bundle:
    """The tiny bundle with a model of known features: random, or of these arrays."""
    made = tiny_bundle(folder)
    names = [network.name for network in made.manifest.networks]
    arrays = {f"{name}.{part}": x for name in names for part, x in vars(random_gaussians()).items()}
    save_file(arrays if parts is None else parts, folder / "ood.safetensors")
    entry = OodModel(file="ood.safetensors", sha256=bundles.checksum(folder / "ood.safetensors"))
    return bundles.write(folder, made.manifest.model_copy(update={"ood": entry, **changes}))


def test_the_distance_is_mahalanobis_from_the_nearest_class() -> None:
    true = RNG.normal(size=(5, 5))
    covariance = true @ true.T + np.eye(5)
    axes = np.linalg.inv(np.linalg.cholesky(covariance))
    mean, centres = RNG.normal(size=5), RNG.normal(size=(3, 5))
    one = Gaussians(mean, axes, (centres - mean) @ axes.T)
    features = RNG.normal(size=(7, 5)) * 3
    inverse = np.linalg.inv(covariance)
    expected = [min(mahalanobis(x, c, inverse) ** 2 for c in centres) / 5 for x in features]
    np.testing.assert_allclose(ood.distance(one, features), expected)
    np.testing.assert_allclose(ood.scores([one, one], [features, features]), expected)


def test_every_runtime_scores_alike_and_the_score_stands_in_the_result(tmp_path: Path) -> None:
    made = knowing(tmp_path)
    found = []
    for runtime in ("torch", "openvino"):
        predictor = open_predictor(made, cache=tmp_path / "cache", runtime=runtime, precision="f32", threads=1)
        found.append(analyze(png(chest(3)), predictor, made).analysis.quality["ood_score"])
    assert found[0] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_film_like_none_is_refused_and_an_unusual_one_is_never_sure(tmp_path: Path) -> None:
    plain = knowing(tmp_path / "plain")
    usual = analyze(png(chest(3)), TorchPredictor(plain, threads=1), plain).analysis
    score = usual.quality["ood_score"]
    assert "unusual_film" not in usual.uncertain_because
    doubts = plain.manifest.calibration.model_copy(update={"unusual_ood_score": score * 0.9})
    rare = bundles.write(plain.root, plain.manifest.model_copy(update={"calibration": doubts}))
    said = analyze(png(chest(3)), TorchPredictor(rare, threads=1), rare).analysis
    assert said.uncertain
    assert said.uncertain_because == [*usual.uncertain_because, "unusual_film"]
    quality = plain.manifest.quality | {"max_ood_score": score * 0.95}
    strict = bundles.write(plain.root, plain.manifest.model_copy(update={"quality": quality}))
    with pytest.raises(Rejected) as caught:
        analyze(png(chest(3)), TorchPredictor(strict, threads=1), strict)
    assert caught.value.code == "out_of_distribution"
    assert caught.value.value == pytest.approx(score, abs=1e-5)
    assert caught.value.threshold == quality["max_ood_score"]


def test_a_bundle_without_a_model_has_no_scores(tiny: Bundle) -> None:
    said = analyze(png(chest(3)), TorchPredictor(tiny, threads=1), tiny).analysis
    assert "ood_score" not in said.quality


def test_arrays_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    names = ("resnet50", "densenet121", "efficientnet_b0")
    good = {f"{name}.{part}": x for name in names for part, x in vars(random_gaussians()).items()}
    assert len(known.load(knowing(tmp_path / "good", good))) == 3
    for number, wrong in enumerate(
        (
            {k: v for k, v in good.items() if k != "resnet50.mean"},
            good | {"resnet50.axes": good["resnet50.axes"][:, :5].copy()},
            good | {"resnet50.centres": good["resnet50.centres"][:, :2].copy()},
            good | {"resnet50.mean": good["resnet50.mean"] * np.float32("nan")},
        )
    ):
        with pytest.raises(BundleError):
            known.load(knowing(tmp_path / str(number), wrong))
