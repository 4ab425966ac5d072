"""Rasters and DICOM into one gray image in 0..1, bright is dense."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import Unreadable
from tests.builders import animated_png, blank_png, bmp, chest, jpeg, png, tiff
from worker.pipeline.decode import decode

GRAY = chest(1, (200, 180))


@pytest.mark.parametrize("data", [png(GRAY), bmp(GRAY), tiff(GRAY), jpeg(GRAY)], ids=["png", "bmp", "tiff", "jpeg"])
def test_every_format_gives_the_same_film(data: bytes) -> None:
    film = decode(data)
    assert film.pixels.dtype == np.float32
    assert film.chroma == 0
    assert np.abs(film.pixels - GRAY / 255).mean() < 0.01


def test_deep_images_use_their_own_range() -> None:
    deep = GRAY.astype(np.uint16) * 16 + 500
    film = decode(png(deep))
    assert (film.pixels.min(), film.pixels.max()) == (0, 1)
    assert np.corrcoef(film.pixels.ravel(), GRAY.ravel())[0, 1] > 0.999


def test_equal_channels_are_gray_and_colours_are_seen() -> None:
    gray = decode(png(np.stack([GRAY] * 3, axis=-1)))
    colour = decode(png(np.stack([GRAY, GRAY[::-1], GRAY], axis=-1)))
    assert gray.chroma == 0
    np.testing.assert_allclose(gray.pixels, GRAY / 255, atol=0.005)
    assert colour.chroma > 0.05


def test_the_orientation_of_a_camera_is_undone() -> None:
    turned = decode(jpeg(np.rot90(GRAY).copy(), orientation=6))
    assert turned.pixels.shape == GRAY.shape
    assert np.abs(turned.pixels - GRAY / 255).mean() < 0.01


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "undecodable"),
        (b"%PDF-1.7 no image", "undecodable"),
        (png(GRAY)[:900], "truncated"),
        (animated_png(GRAY, GRAY[::-1].copy()), "multi_frame"),
        (tiff(GRAY, GRAY), "multi_frame"),
        (blank_png(9000, 9000), "too_many_pixels"),
    ],
    ids=["empty", "pdf", "truncated", "animated", "pages", "bomb"],
)
def test_what_holds_no_single_image_has_a_code(data: bytes, code: str) -> None:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert caught.value.code == code
