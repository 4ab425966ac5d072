"""The view network: what its logits mean, the same in every runtime, and the refusals that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shared import bundles
from shared.bundles import Bundle, ViewNetwork
from shared.errors import BundleError, Rejected
from tests.builders import chest, png, tiny_bundle
from worker.pipeline import view
from worker.pipeline.analyze import analyze
from worker.runtimes import networks
from worker.runtimes.choose import open_predictor
from worker.runtimes.torch import TorchPredictor

WIDTHS, SIDE = [4, 8], 32
SURE = {"min_view_film": 0.5, "max_view_inverted": 0.5, "min_view_upright": 0.5, "max_view_lateral": 0.5}
SURE |= {"max_view_cropped": 0.5}


def seeing(folder: Path, logits: dict[str, float] | None, **quality: float) -> Bundle:
    """The tiny bundle with a view network: random, or one that says the same logits about every picture."""
    made = tiny_bundle(folder)
    torch.manual_seed(0)
    module = networks.View(WIDTHS, SIDE, len(view.OUTPUTS))
    if logits is not None:
        module.head.weight.data.zero_()
        module.head.bias.data = torch.tensor([logits.get(name, -9.0) for name in view.OUTPUTS])
    networks.save(module, folder / "view.safetensors")
    entry = ViewNetwork(
        file="view.safetensors",
        sha256=bundles.checksum(folder / "view.safetensors"),
        widths=WIDTHS,
        input_size=SIDE,
    )
    changes = {"view": entry, "quality": made.manifest.quality | quality}
    return bundles.write(folder, made.manifest.model_copy(update=changes))


@pytest.mark.parametrize(
    ("logits", "code", "name"),
    [
        ({"film": -3.0, "turned_0": 9.0}, "not_a_chest_film", "view_film"),
        ({"film": 9.0, "inverted": 3.0, "turned_0": 9.0}, "inverted", "view_inverted"),
        ({"film": 9.0, "turned_180": 9.0}, "rotated", "view_upright"),
        ({"film": 9.0, "lateral": 3.0, "turned_0": 9.0}, "lateral", "view_lateral"),
        ({"film": 9.0, "cropped": 3.0, "turned_0": 9.0}, "cropped_lungs", "view_cropped"),
    ],
)
def test_each_wrong_view_has_a_code_a_value_and_a_limit(
    tmp_path: Path, logits: dict[str, float], code: str, name: str
) -> None:
    made = seeing(tmp_path, logits, **SURE)
    with pytest.raises(Rejected) as caught:
        analyze(png(chest(3)), TorchPredictor(made, threads=1), made)
    assert caught.value.code == code
    assert caught.value.threshold == 0.5
    expected = view.read(np.array([logits.get(output, -9.0) for output in view.OUTPUTS], np.float32))
    assert caught.value.value == pytest.approx(expected[name], abs=1e-3)
    assert ("by 180 degrees" in caught.value.detail) == (code == "rotated")


def test_a_good_view_passes_and_stands_in_the_result(tmp_path: Path) -> None:
    made = seeing(tmp_path, {"film": 9.0, "turned_0": 9.0}, **SURE)
    said = analyze(png(chest(3)), TorchPredictor(made, threads=1), made).analysis
    assert said.quality["view_film"] > 0.99
    assert said.quality["view_turned_deg"] == 0


def test_every_runtime_sees_the_same(tmp_path: Path) -> None:
    made = seeing(tmp_path, None)
    seen = [chest(3) / np.float32(255), 1 - chest(4) / np.float32(255), np.random.default_rng(0).random((90, 90))]
    films = np.stack([view.segmentation_tensor(pixels, SIDE) for pixels in seen])[:, None]
    torch_, openvino = (
        open_predictor(made, cache=tmp_path / "cache", runtime=name, precision="f32", threads=1)
        for name in ("torch", "openvino")
    )
    expected = torch_.view(films)
    assert expected.shape == (3, len(view.OUTPUTS))
    assert expected.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(openvino.view(films), expected, atol=1e-3)


def test_a_bundle_without_a_view_network_is_not_asked_for_one(tiny: Bundle, tmp_path: Path) -> None:
    for name in ("torch", "openvino"):
        predictor = open_predictor(tiny, cache=tmp_path, runtime=name, threads=1)
        assert view.measure(chest(3) / np.float32(255), predictor, tiny.manifest.view) == {}
        with pytest.raises(BundleError, match="no view network"):
            predictor.view(np.zeros((1, 1, SIDE, SIDE), np.float32))


def test_weights_of_another_view_network_do_not_load(tmp_path: Path) -> None:
    made = seeing(tmp_path, None)
    assert made.manifest.view is not None
    wider = made.manifest.view.model_copy(update={"widths": [4, 16]})
    with pytest.raises(BundleError, match="does not fit"):
        TorchPredictor(bundles.write(tmp_path, made.manifest.model_copy(update={"view": wider})))
    (tmp_path / "view.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="altered"):
        bundles.read(tmp_path)
