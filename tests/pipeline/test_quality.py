"""The quality gate: coded refusals with value and limit, and nothing that slips through a misspelt limit."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import BundleError, Rejected
from tests.builders import chest
from worker.pipeline import quality
from worker.pipeline.decode import Radiograph
from worker.pipeline.lungs import Lungs


def film(pixels: np.ndarray, chroma: float = 0.0) -> Radiograph:
    return Radiograph(pixels.astype(np.float32), chroma, 8, "png")


def two_lungs(shape: tuple[int, int] = (200, 200)) -> Lungs:
    mask = np.zeros(shape, bool)
    mask[40:160, 30:85] = mask[40:160, 115:170] = True
    return Lungs(mask, (20, 20, 180, 180), 0.95)


CHEST = chest(1).astype(np.float32) / 255
NOISE = np.random.default_rng(0).random((200, 200))

REFUSED = [
    (film(CHEST[:40, :40]), {"min_side_px": 96.0}, "too_small"),
    (film(CHEST[:100]), {"max_aspect": 2.0}, "bad_proportions"),
    (film(CHEST, chroma=0.2), {"max_chroma": 0.06}, "colour"),
    (film(np.full((200, 200), 0.4)), {"min_contrast": 0.15}, "low_contrast"),
    (film(np.clip(CHEST * 8 - 3, 0, 1)), {"min_exposed": 0.4}, "unexposed"),
    (film(np.kron([[0.1, 0.9], [0.9, 0.1]], np.ones((100, 100)))), {"min_tones": 3.0}, "not_a_radiograph"),
    (film(NOISE), {"max_roughness": 0.4}, "not_a_radiograph"),
]


@pytest.mark.parametrize(("radiograph", "limits", "code"), REFUSED, ids=[code for *_, code in REFUSED])
def test_an_image_beyond_a_limit_is_refused_with_what_was_measured(
    radiograph: Radiograph, limits: dict[str, float], code: str
) -> None:
    with pytest.raises(Rejected) as caught:
        quality.check_image(radiograph, limits)
    assert caught.value.code == code
    assert caught.value.threshold == next(iter(limits.values()))
    assert caught.value.value == pytest.approx(next(iter(_named(radiograph, limits))))


def _named(radiograph: Radiograph, limits: dict[str, float]) -> list[float]:
    return [quality.measure_image(radiograph)[name.removeprefix("min_").removeprefix("max_")] for name in limits]


def test_a_film_within_every_limit_passes_with_all_its_values() -> None:
    limits = {limit: value for _, each, _ in REFUSED for limit, value in each.items()}
    assert set(quality.check_image(film(CHEST), limits)) == {check.name for check in quality.IMAGE_CHECKS}


def test_lungs_are_looked_at_too() -> None:
    pixels = np.full((200, 200), 0.8)
    good = two_lungs()
    pixels[good.mask] = 0.3
    values = quality.check_lungs(film(pixels), good, {"min_lungs_darkness": 0.5, "min_lungs_symmetry": 0.9})
    assert values["lungs_area"] == pytest.approx(0.33)
    assert values["lungs_smaller"] == values["lungs_symmetry"] == 1
    with pytest.raises(Rejected, match="darker") as caught:
        quality.check_lungs(film(1 - pixels), good, {"min_lungs_darkness": 0.5})
    assert caught.value.code == "not_a_radiograph"


def test_one_lung_and_no_lungs_have_codes_of_their_own() -> None:
    mask = two_lungs().mask.copy()
    mask[60:160, 115:170] = False
    with pytest.raises(Rejected) as caught:
        quality.check_lungs(film(NOISE), Lungs(mask, (0, 0, 9, 9)), {"min_lungs_smaller": 0.5})
    assert caught.value.code == "one_lung"
    with pytest.raises(Rejected) as caught:
        quality.check_lungs(film(NOISE), Lungs(np.zeros((200, 200), bool), (0, 0, 0, 0)), {})
    assert caught.value.code == "no_lungs"


def test_an_image_that_is_all_lung_has_lungs_but_is_no_film() -> None:
    everywhere = Lungs(np.ones((200, 200), bool), (0, 0, 200, 200))
    with pytest.raises(Rejected) as caught:
        quality.check_lungs(film(NOISE), everywhere, {"min_lungs_area": 0.1, "max_lungs_area": 0.6})
    assert (caught.value.code, caught.value.threshold) == ("not_a_radiograph", 0.6)


def test_lungs_of_one_gray_are_not_judged() -> None:
    flat = np.where(two_lungs().mask, 0.2, NOISE)
    with pytest.raises(Rejected) as caught:
        quality.check_lungs(film(flat), two_lungs(), {"min_lungs_contrast": 0.03})
    assert (caught.value.code, caught.value.value) == ("low_contrast", 0)


def test_lungs_that_the_edge_cuts_are_cropped() -> None:
    whole = two_lungs()
    cut = Lungs(whole.mask[:, 50:].copy(), (0, 0, 9, 9))
    limits = {"max_lungs_cropped": 0.3}
    assert quality.check_lungs(film(NOISE), whole, limits)["lungs_cropped"] == 0
    with pytest.raises(Rejected) as caught:
        quality.check_lungs(film(NOISE[:, 50:]), cut, limits)
    assert (caught.value.code, caught.value.value) == ("cropped_lungs", pytest.approx(0.6))


def test_the_checks_are_made_in_one_order_and_only_of_what_was_measured() -> None:
    limits = {"min_view_film": 0.5, "max_view_inverted": 0.5, "max_ood_score": 2.0}
    values = {"ood_score": 9.0, "view_inverted": 0.9, "view_film": 0.1}
    for code in ("not_a_chest_film", "inverted", "out_of_distribution"):
        with pytest.raises(Rejected) as caught:
            quality.check(values, limits)
        assert caught.value.code == code
        del values[next(one.name for one in quality.CHECKS if one.code == code)]
    assert quality.check(values, limits) == {}


def test_a_value_that_is_no_number_does_not_pass() -> None:
    values = two_lungs()
    unsure = Lungs(values.mask, values.box, float("nan"))
    with pytest.raises(Rejected):
        quality.check_lungs(film(NOISE), unsure, {"min_lungs_certainty": 0.5})


def test_a_misspelt_limit_is_an_error_not_an_open_gate() -> None:
    with pytest.raises(BundleError, match="min_sharpness"):
        quality.check_image(film(CHEST), {"min_sharpness": 0.5})
