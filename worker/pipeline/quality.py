"""The quality gate: what is measured on an image and its lungs, and the coded refusals; limits are the bundle's."""

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
    Check("tones", "not_a_radiograph", "the entropy of the gray values in bits"),
    Check("roughness", "not_a_radiograph", "the share of fine structure in the image"),
)
LUNGS_CHECKS = (
    Check("lungs_area", "no_lungs", "the share of the image that is lung", "not_a_radiograph"),
    Check("lungs_smaller", "one_lung", "the area of the smaller lung over that of the larger"),
    Check("lungs_certainty", "not_a_radiograph", "how sure the lungs network is inside its mask"),
    Check("lungs_symmetry", "not_a_radiograph", "how much the two lungs mirror each other"),
    Check("lungs_upright", "not_a_radiograph", "the height of the lungs over their width"),
    Check("lungs_darkness", "not_a_radiograph", "how much darker the lungs are than what surrounds them"),
)


def check_image(radiograph: Radiograph, limits: Mapping[str, float]) -> dict[str, float]:
    """The values of IMAGE_CHECKS; Rejected with the first check's code whose limit is broken."""
    _verify(limits)
    return _gate(measure_image(radiograph), IMAGE_CHECKS, limits)


def check_lungs(radiograph: Radiograph, lungs: Lungs, limits: Mapping[str, float]) -> dict[str, float]:
    """The values of LUNGS_CHECKS; Rejected where there are no lungs or a limit is broken."""
    _verify(limits)
    if not lungs.mask.any():
        least = limits.get("min_lungs_area", 0.0)
        raise Rejected("no_lungs", "no lungs were found in this image", value=0.0, threshold=least)
    return _gate(measure_lungs(radiograph, lungs), LUNGS_CHECKS, limits)


def measure_image(radiograph: Radiograph) -> dict[str, float]:
    """The values of IMAGE_CHECKS, without judging them."""
    height, width = radiograph.pixels.shape
    small = resize(square_of(radiograph.pixels), LOOK)
    dark, bright = np.percentile(small, (5, 95))
    return {
        "side_px": float(min(height, width)),
        "aspect": max(height, width) / min(height, width),
        "chroma": radiograph.chroma,
        "contrast": float(bright - dark),
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
    return {
        "lungs_area": float(lungs.mask.mean()),
        "lungs_smaller": sides[0] / max(sides[1], 1.0),
        "lungs_certainty": lungs.certainty,
        "lungs_symmetry": float((part & mirrored).sum() / (part | mirrored).sum()),
        "lungs_upright": part.shape[0] / part.shape[1],
        "lungs_darkness": _darkness(radiograph.pixels[top:bottom, left:right], part),
    }


def _gate(values: dict[str, float], checks: tuple[Check, ...], limits: Mapping[str, float]) -> dict[str, float]:
    """The values unchanged where none breaks its limits."""
    for check in checks:
        value = values[check.name]
        low, high = limits.get(f"min_{check.name}"), limits.get(f"max_{check.name}")
        if low is not None and not value >= low:
            raise Rejected(check.code, f"too low: {check.detail}", value=value, threshold=low)
        if high is not None and not value <= high:
            raise Rejected(check.above or check.code, f"too high: {check.detail}", value=value, threshold=high)
    return values


def _verify(limits: Mapping[str, float]) -> None:
    """A limit under a wrong name would silently limit nothing."""
    known = {f"{bound}_{check.name}" for check in (*IMAGE_CHECKS, *LUNGS_CHECKS) for bound in ("min", "max")}
    if unknown := set(limits) - known:
        raise BundleError(f"the quality gate knows no limits {sorted(unknown)}")


def _entropy(values: np.ndarray) -> float:
    """Shannon entropy in bits of values in 0..1 over 64 bins: a drawing uses few tones."""
    counts = np.histogram(values, bins=64, range=(0.0, 1.0))[0]
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _roughness(values: np.ndarray) -> float:
    """Deviation of what a small blur takes away over that of the image: noise is rough, a chest is smooth."""
    fine = values - ndimage.gaussian_filter(values, 1.5)
    return float(fine.std() / max(float(values.std()), 1e-6))


def _darkness(pixels: np.ndarray, mask: np.ndarray) -> float:
    """Mean outside minus mean inside the mask, in deviations of the box: an inverted film is below 0."""
    if mask.all():
        return 0.0
    return float((pixels[~mask].mean() - pixels[mask].mean()) / max(float(pixels.std()), 1e-6))
