"""Heat maps: fused by the vote, put back on the image, drawn so that they can be read."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shared.errors import BundleError
from worker.pipeline import explain, render
from worker.pipeline.explain import Cams


def cams() -> Cams:
    maps = np.random.default_rng(0).normal(size=(3, 4, 7, 7)).astype(np.float16)
    return Cams(maps, ["a", "b", "c", "d"], ["x", "y", "z"], (-4, 10, 96, 110))


def test_archives_come_back_as_they_were() -> None:
    written = cams()
    read = explain.read_cams(written.to_bytes())
    np.testing.assert_array_equal(read.maps, written.maps)
    assert read.maps.dtype == np.float16
    assert (read.classes, read.networks, read.box) == (written.classes, written.networks, written.box)


def test_other_archives_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, maps=np.zeros((2, 4, 7, 7)), classes=["a"], networks=["x"], box=[0, 0, 1, 1])
    pickled = io.BytesIO()
    np.savez(pickled, maps=np.array([object()]), classes=["a"], networks=["x"], box=[0, 0, 1, 1])
    for data in (b"", b"no archive", buffer.getvalue(), pickled.getvalue()):
        with pytest.raises(ValueError, match=r"class maps|allow_pickle"):
            explain.read_cams(data)


def test_heat_is_positive_evidence_of_each_network_alike() -> None:
    maps = np.full((2, 2, 3, 3), -5.0, dtype=np.float16)
    maps[0, 1, 0, 0] = 1000  # a loud network
    maps[1, 1, 2, 2] = 0.001  # and a quiet one
    heat = explain.fuse(maps, 1)
    assert heat.dtype == np.float32
    assert heat[0, 0] == heat[2, 2] == 1.0
    assert heat.sum() == 2.0
    assert explain.fuse(maps, 1, votes=[1.0, 0.0])[2, 2] == 0
    assert not explain.fuse(maps, 0).any()


def test_an_archive_keeps_the_votes_and_older_ones_have_none() -> None:
    cast = replace(cams(), votes=[0.5, 0.3, 0.2])
    assert explain.read_cams(cast.to_bytes()).votes == [0.5, 0.3, 0.2]
    one = cams()
    older = io.BytesIO()
    np.savez(older, maps=one.maps, classes=one.classes, networks=one.networks, box=one.box)
    assert explain.read_cams(older.getvalue()).votes == []
    with pytest.raises(ValueError, match="votes"):
        explain.read_cams(replace(one, votes=[1.0]).to_bytes())


def test_heat_that_is_no_number_is_refused() -> None:
    maps = cams().maps
    maps[1, 2, 0, 0] = np.nan
    with pytest.raises(BundleError):
        explain.fuse(maps, 2)
    assert np.isfinite(explain.fuse(maps, 1)).all()


def test_heat_lands_where_the_box_is() -> None:
    heat = np.zeros((7, 7), dtype=np.float32)
    heat[0, 6] = 1.0  # the upper right corner of the box
    placed = explain.heat_on_image(heat, (50, 20, 120, 90), (100, 200))
    assert placed.shape == (100, 200)
    y, x = np.unravel_index(placed.argmax(), placed.shape)
    assert 105 <= x < 120
    assert 20 <= y < 35
    assert not placed[:, 120:].any()
    assert not placed[90:].any()


def test_heat_is_described_in_pixels_of_the_image() -> None:
    heat, mask = np.zeros((50, 100), dtype=np.float32), np.zeros((50, 100), dtype=bool)
    mask[:, :50] = True
    heat[10, 20], heat[30, 80] = 0.75, 0.25
    assert explain.describe(heat, mask) == {"peak": [20, 10], "lungs_share": 0.75, "lungs_lift": 1.5}
    nothing = {"peak": None, "lungs_share": None, "lungs_lift": None}
    assert explain.describe(np.zeros_like(heat), mask) == nothing


def test_cold_regions_stay_gray_and_hot_ones_do_not() -> None:
    film = np.full((80, 120), 0.5, dtype=np.float32)
    heat = np.zeros_like(film)
    heat[:, 60:] = 1.0
    picture = render.overlay(film, heat)
    assert picture.shape == (80, 120, 3)
    assert (picture[:, :60] == 128).all()
    assert (np.ptp(picture[:, 60:].astype(int), axis=-1) > 30).all()


def test_the_contour_lies_just_outside_the_lungs() -> None:
    film, mask = np.zeros((100, 100), dtype=np.float32), np.zeros((100, 100), dtype=bool)
    mask[30:70, 30:70] = True
    picture = render.overlay(film, film, mask)
    drawn = (picture == render.CONTOUR).all(axis=-1)
    assert drawn[29, 50]
    assert not drawn[30:70, 30:70].any()
    assert not drawn[:25].any()


def test_the_colours_grow_brighter_step_by_step() -> None:
    luma = render.TABLE @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > 0).all()


def test_pictures_come_back_as_they_were() -> None:
    film = np.random.default_rng(1).integers(0, 256, (40, 30)).astype(np.uint8)
    mask, colour = film > 100, np.stack([film, film.T.reshape(40, 30), film], axis=-1)
    for array in (film, mask, colour):
        np.testing.assert_array_equal(render.read_png(render.png(array)), array)
    assert Image.open(io.BytesIO(render.png(mask))).mode == "1"
    assert Image.open(io.BytesIO(render.jpeg(colour))).format == "JPEG"
    np.testing.assert_array_equal(render.gray8(film.astype(np.float32) / 255), film)
