"""Lungs: geometry there and back, and the tensor that the networks see."""

from __future__ import annotations

import numpy as np
import pytest

from shared.bundles import Bundle, Preprocessing
from tests.builders import chest
from worker.pipeline import lungs
from worker.pipeline.lungs import Lungs
from worker.pipeline.predictor import Predictor

HOW = Preprocessing.model_validate({})


def test_the_lungs_of_a_drawn_chest_are_found(predictor: Predictor, tiny: Bundle) -> None:
    pixels = chest(2).astype(np.float32) / 255
    found = lungs.find(pixels, predictor, tiny.manifest.lungs, HOW)
    area, left, right = found.fractions
    assert area == pytest.approx(left + right)
    assert min(left, right) > 0.04
    assert 0.5 < found.certainty <= 1


def test_nothing_is_found_where_nothing_is(predictor: Predictor, tiny: Bundle) -> None:
    found = lungs.find(np.zeros((300, 200), np.float32), predictor, tiny.manifest.lungs, HOW)
    assert not found.mask.any()
    assert (found.box, found.certainty) == ((0, 0, 0, 0), 0.0)


@pytest.mark.parametrize("shape", [(120, 300), (300, 120), (200, 200)])
def test_a_square_and_back_keeps_places(shape: tuple[int, int]) -> None:
    pixels = np.zeros(shape, np.float32)
    pixels[shape[0] // 4 : shape[0] // 2, shape[1] // 2 :] = 1
    back = lungs.unsquare(lungs.resize(lungs.square_of(pixels), 256), shape)
    assert back.shape == shape
    assert np.abs(back - pixels).mean() < 0.03


def test_the_crop_is_square_centred_and_may_leave_the_image() -> None:
    mask = np.zeros((200, 100), bool)
    mask[20:180, 10:90] = True
    left, top, right, bottom = lungs.crop_box(mask, 0.05)
    assert right - left == bottom - top == 176
    assert left < 0
    assert right > 100
    crop = lungs.cut(np.ones((200, 100), np.float32), (left, top, right, bottom))
    assert crop[:, 0].max() == 0
    assert crop[88, 88] == 1


def test_a_map_on_the_crop_comes_back_to_its_place() -> None:
    heat = np.ones((7, 7), np.float32)
    back = lungs.uncrop(heat, (-10, 20, 90, 120), (150, 80))
    assert back.shape == (150, 80)
    assert back[20:120, :].min() > 0.99
    assert back[:20].max() == back[120:].max() == 0


def test_the_tensor_is_standardised_inside_and_zero_outside() -> None:
    pixels = chest(5).astype(np.float32) / 255
    mask = np.zeros(pixels.shape, bool)
    mask[80:240, 50:130] = mask[80:240, 160:240] = True
    found = Lungs(mask, lungs.crop_box(mask, HOW.crop_margin))
    tensor = lungs.tensor(pixels, found, HOW)
    inside = tensor[tensor != 0]
    assert tensor.dtype == np.float32
    assert tensor.shape == (224, 224)
    assert abs(inside.mean()) < 0.1
    assert inside.std() == pytest.approx(1, abs=0.2)
    assert np.abs(tensor).max() <= HOW.clip
    brighter = lungs.tensor(pixels * 0.5 + 0.2, found, HOW)
    np.testing.assert_allclose(brighter, tensor, atol=1e-2)  # exposure is taken out


def test_proportions_are_kept() -> None:
    mask = np.zeros((400, 400), bool)
    mask[100:300, 150:250] = True  # twice as high as wide
    tensor = lungs.tensor(np.random.default_rng(0).random((400, 400)), Lungs(mask, lungs.crop_box(mask, 0.05)), HOW)
    rows, columns = np.flatnonzero(tensor.any(axis=1)), np.flatnonzero(tensor.any(axis=0))
    growth = 2 * round(HOW.mask_dilation * 224)
    assert (np.ptp(rows) + 1 - growth) / (np.ptp(columns) + 1 - growth) == pytest.approx(2, abs=0.1)


def test_islands_are_noise_and_holes_are_filled() -> None:
    mask = np.zeros((200, 200), bool)
    mask[40:160, 20:80] = mask[40:160, 120:180] = True
    mask[90:100, 40:50] = False
    mask[2:6, 2:6] = True
    cleaned = lungs._cleaned(mask)
    assert cleaned[95, 45]
    assert not cleaned[3, 3]
