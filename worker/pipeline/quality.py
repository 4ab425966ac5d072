"""The quality gate: what is measured on an image, and the coded refusals; limits are the bundle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from shared.errors import BundleError, Rejected
from worker.pipeline.decode import Radiograph
from worker.pipeline.lungs import Lungs, resize, square_of

LOOK = 128  # side in pixels at which an image's texture is measured, whatever its size


@dataclass(frozen=True)
class Check:
    """A measured value: below the bundle's `min_<name>` the refusal is `code`, above `max_<name>` it is `above`."""

    name: str
    code: str
    detail: str
    above: str = ""


IMAGE_CHECKS = (
    Check("side_px", "too_small", "the shorter side of the image, in pixels"),
    Check("aspect", "bad_proportions", "the longer side over the shorter side"),
    Check("chroma", "colour", "the mean spread of the colours; a radiograph is gray"),
    Check("contrast", "low_contrast", "the spread of the gray values between percentiles 5 and 95"),
    Check("exposed", "unexposed", "the share of the image that is neither black nor white"),
    Check("tones", "not_a_radiograph", "the entropy of the gray values in bits"),
    Check("roughness", "not_a_radiograph", "the share of fine structure in the image"),
)
VIEW_CHECKS = (
    Check("view_film", "not_a_chest_film", "how much the image looks like a chest film"),
    Check("view_inverted", "inverted", "how much black and white look exchanged"),
    Check("view_upright", "rotated", "how sure it is that the patient stands upright in the image"),
    Check("view_lateral", "lateral", "how much the film looks like one taken from the side"),
    Check("view_cropped", "cropped_lungs", "how much the film looks as if it ended within the lungs"),
)
LUNGS_CHECKS = (
    Check("lungs_area", "no_lungs", "the share of the image that is lung", "not_a_radiograph"),
    Check("lungs_smaller", "one_lung", "the area of the smaller lung over that of the larger"),
    Check("lungs_certainty", "not_a_radiograph", "how sure the lungs network is inside its mask"),
    Check("lungs_symmetry", "not_a_radiograph", "how much the two lungs mirror each other"),
    Check("lungs_upright", "not_a_radiograph", "the height of the lungs over their width"),
    Check("lungs_darkness", "not_a_radiograph", "how much darker the lungs are than what surrounds them"),
    Check("lungs_contrast", "low_contrast", "the spread of the gray values in the lungs between percentiles 5 and 95"),
    Check("lungs_cropped", "cropped_lungs", "the share of a side of the image that the lungs touch"),
)
OOD_CHECKS = (Check("ood_score", "out_of_distribution", "how far the film is from all that the networks learned from"),)
CHECKS = (*IMAGE_CHECKS, *VIEW_CHECKS, *LUNGS_CHECKS, *OOD_CHECKS)
BLACK, WHITE = 0.02, 0.98


def check(values: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """The values of some checks by name, unchanged; Rejected with the code of the first whose limit is broken."""
    _verify(limits)
    for one in CHECKS:
        if one.name not in values:
            continue
        value, low, high = values[one.name], limits.get(f"min_{one.name}"), limits.get(f"max_{one.name}")
        if low is not None and not value >= low:
            raise Rejected(one.code, f"too low: {one.detail}{_turned(one, values)}", value=value, threshold=low)
        if high is not None and not value <= high:
            raise Rejected(one.above or one.code, f"too high: {one.detail}", value=value, threshold=high)
    return dict(values)


def check_image(radiograph: Radiograph, limits: Mapping[str, float]) -> dict[str, float]:
    """The values of IMAGE_CHECKS; Rejected with the first check's code whose limit is broken."""
    return check(measure_image(radiograph), limits)


def check_lungs(radiograph: Radiograph, lungs: Lungs, limits: Mapping[str, float]) -> dict[str, float]:
    """The values of LUNGS_CHECKS; Rejected where there are no lungs or a limit is broken."""
    if not lungs.mask.any():
        least = limits.get("min_lungs_area", 0.0)
        raise Rejected("no_lungs", "no lungs were found in this image", value=0.0, threshold=least)
    return check(measure_lungs(radiograph, lungs), limits)


def measure_image(radiograph: Radiograph) -> dict[str, float]:
    """The values of IMAGE_CHECKS, without judging them."""
    height, width = radiograph.pixels.shape
    small = resize(square_of(radiograph.pixels), LOOK)
    dark, bright = np.percentile(small, (5, 95))
    step = max(min(height, width) // LOOK, 1)
    some = radiograph.pixels[::step, ::step]
    return {
        "side_px": float(min(height, width)),
        "aspect": max(height, width) / min(height, width),
        "chroma": radiograph.chroma,
        "contrast": float(bright - dark),
        "exposed": float(((some > BLACK) & (some < WHITE)).mean()),
        "tones": _entropy(small),
        "roughness": _roughness(small),
    }


def measure_lungs(radiograph: Radiograph, lungs: Lungs) -> dict[str, float]:
    """The values of LUNGS_CHECKS of a mask that is not empty, without judging them."""
    rows, columns = np.flatnonzero(lungs.mask.any(axis=1)), np.flatnonzero(lungs.mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    part = lungs.mask[top:bottom, left:right]
    half = part.shape[1] // 2
    sides = sorted((float(part[:, :half].sum()), float(part[:, part.shape[1] - half :].sum())))
    mirrored = part[:, ::-1]
    box = radiograph.pixels[top:bottom, left:right]
    return {
        "lungs_area": float(lungs.mask.mean()),
        "lungs_smaller": sides[0] / max(sides[1], 1.0),
        "lungs_certainty": lungs.certainty,
        "lungs_symmetry": float((part & mirrored).sum() / (part | mirrored).sum()),
        "lungs_upright": part.shape[0] / part.shape[1],
        "lungs_darkness": _darkness(box, part),
        "lungs_contrast": _spread(box[part]),
        "lungs_cropped": max(float(side.mean()) for side in _sides(lungs.mask)),
    }


def _verify(limits: Mapping[str, float]) -> None:
    """A limit under a wrong name would silently limit nothing."""
    known = {f"{bound}_{one.name}" for one in CHECKS for bound in ("min", "max")}
    if unknown := set(limits) - known:
        raise BundleError(f"the quality gate knows no limits {sorted(unknown)}")


def _turned(one: Check, values: Mapping[str, float]) -> str:
    """By how much a picture that does not stand upright seems turned."""
    degrees = values.get("view_turned_deg")
    return f"; turned by {degrees:.0f} degrees it would look like this" if one.code == "rotated" and degrees else ""


def _sides(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    return mask[0], mask[-1], mask[:, 0], mask[:, -1]


def _entropy(values: np.ndarray) -> float:
    """Shannon entropy in bits of values in 0..1 over 64 bins: a drawing uses few tones."""
    counts = np.histogram(values, bins=64, range=(0.0, 1.0))[0]
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _roughness(values: np.ndarray) -> float:
    """Deviation of what a small blur takes away over that of the image: noise is rough, a chest is smooth."""
    fine = values - ndimage.gaussian_filter(values, 1.5)
    return float(fine.std() / max(float(values.std()), 1e-6))


def _spread(values: np.ndarray) -> float:
    """Percentile 95 minus percentile 5 of values [N], of every so many where there are many."""
    dark, bright = np.percentile(values[:: max(len(values) // LOOK**2, 1)], (5, 95))
    return float(bright - dark)


def _darkness(pixels: np.ndarray, mask: np.ndarray) -> float:
    """Mean outside minus mean inside the mask, in deviations of the box: an inverted film is below 0."""
    if mask.all():
        return 0.0
    return float((pixels[~mask].mean() - pixels[mask].mean()) / max(float(pixels.std()), 1e-6))
