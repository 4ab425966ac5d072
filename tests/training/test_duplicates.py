"""Copies of a film are found however they were made, and two films of two people are not taken for one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.builders import chest
from training import duplicates


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    """Forty films float32 [220, 200] in 0..1 of as many people: each has fine structure of his own."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        vessels = ndimage.gaussian_filter(rng.normal(size=(220, 200)), 3)
        pixels = chest(seed, (220, 200)).astype(np.float32) / 255 + vessels * 1.2
        found.append(np.clip(pixels, 0, 1).astype(np.float32))
    return found


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


COPIES = {
    "recompressed": lambda p: jpeg(p, 30),
    "resized": lambda p: ndimage.zoom(p, 0.5, order=1),
    "squashed": lambda p: ndimage.zoom(p, (0.6, 1.0), order=1),
    "windowed": lambda p: np.clip((p - 0.15) * 1.3, 0, 1) ** 1.3,
    "cropped": lambda p: p[14:-6, 8:-14],
    "cropped and recompressed": lambda p: jpeg(np.ascontiguousarray(p[4:-20, 10:-10]), 50),
}


@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_and_nothing_else(films: list[np.ndarray], how: object) -> None:
    copy = np.asarray(how(films[7]), np.float32)  # type: ignore[operator]
    thumbnails = np.stack([duplicates.thumbnail(p) for p in [*films, copy]])
    found = duplicates.find(thumbnails)
    assert [(pair.first, pair.second) for pair in found] == [(7, 40)]
    assert found[0].likeness > duplicates.LIKENESS


def test_every_copy_of_a_small_set_is_found(films: list[np.ndarray]) -> None:
    copies = [np.asarray(how(films[n]), np.float32) for n, how in enumerate(COPIES.values())]
    found = duplicates.find(np.stack([duplicates.thumbnail(p) for p in [*films, *copies]]))
    assert [(pair.first, pair.second) for pair in found] == [(n, 40 + n) for n in range(len(copies))]


def test_few_images_and_films_that_nothing_resembles_are_no_trouble(films: list[np.ndarray]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, duplicates.SIDE, duplicates.SIDE)).astype(np.uint8)
    assert duplicates.find(noise) == []
    assert duplicates.find(np.zeros((0, duplicates.SIDE, duplicates.SIDE), np.uint8)) == []
    twice = np.stack([duplicates.thumbnail(films[0])] * 2)
    assert [(p.first, p.second) for p in duplicates.find(twice)] == [(0, 1)]


def test_a_thumbnail_is_the_film_in_small() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 128, dtype=np.float32), (256, 128))
    small = duplicates.thumbnail(ramp)
    assert small.shape == (64, 64)
    assert small.dtype == np.uint8
    np.testing.assert_allclose(small[0] / 255, ramp[0].reshape(64, 2).mean(axis=1), atol=0.01)
