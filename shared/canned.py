"""What a rehearsed job answers: values and pictures that look like those of a film, and say that they are none."""

from __future__ import annotations

import base64
from typing import Any

from shared.schemas import DISCLAIMER, Analysis, Failure, LungsView, Method, Reason, RuntimeView, Stage

BUNDLE = "rehearsal@0.0.0#000000000000"
NOTHING_READ = "Made with a test key: no film was read, and every value is canned. "

_SURE = {"covid19": 0.02, "lung_opacity": 0.9, "normal": 0.05, "viral_pneumonia": 0.03}
_TORN = {"covid19": 0.1, "lung_opacity": 0.44, "normal": 0.41, "viral_pneumonia": 0.05}
_NETWORKS = ("resnet50", "densenet121", "efficientnet_b0")


def _analysis(ensemble: dict[str, float], because: list[str], expected: list[str]) -> Analysis:
    first, second, *_ = sorted(ensemble.values(), reverse=True)
    return Analysis(
        top_class=max(ensemble, key=ensemble.__getitem__),
        confidence=first,
        margin_top2=round(first - second, 4),
        model_disagreement=0.0,
        uncertain=bool(because),
        uncertain_because=because,
        prediction_set=expected,
        coverage=0.9,
        ensemble=ensemble,
        per_model=dict.fromkeys(_NETWORKS, ensemble),
        quality={"contrast": 0.5, "chroma": 0.0},
        lungs=LungsView(area_fraction=0.3, left_fraction=0.15, right_fraction=0.15, box=(8, 8, 56, 56)),
        classes=list(ensemble),
        bundle=BUNDLE,
        runtime=RuntimeView(name="rehearsal", device="none", precision="none", threads=1),
        stages=[Stage(name="rehearsal", started_s=0.0)],
        disclaimer=NOTHING_READ + DISCLAIMER,
    )


CERTAIN = _analysis(_SURE, [], ["lung_opacity"])
UNCERTAIN = _analysis(_TORN, ["low_confidence", "small_margin"], ["lung_opacity", "normal"])

# Every code of docs/http.md, with the value and the threshold that such a refusal might state.
_REFUSALS: dict[str, tuple[float, float] | None] = {
    "undecodable": None,
    "truncated": None,
    "no_pixels": None,
    "multi_frame": (2, 1),
    "too_many_pixels": (100_000_000, 50_000_000),
    "decoder_timeout": (20.5, 20.0),
    "decoder_memory": None,
    "decoder_crashed": None,
    "too_small": (64, 96),
    "bad_proportions": (4.0, 2.5),
    "colour": (0.4, 0.1),
    "low_contrast": (0.01, 0.1),
    "unexposed": (0.05, 0.3),
    "not_a_radiograph": (1.5, 4.0),
    "not_a_chest_film": (0.1, 0.5),
    "lateral": (0.9, 0.5),
    "inverted": (0.9, 0.5),
    "rotated": (0.1, 0.5),
    "no_lungs": (0.01, 0.08),
    "one_lung": (0.05, 0.25),
    "cropped_lungs": (0.9, 0.4),
    "out_of_distribution": (3.0, 1.0),
}
REASONS = {
    code: Reason(
        code=code,
        detail=f"{NOTHING_READ}A film is rejected with this code.",
        value=float(measured[0]) if measured else None,
        threshold=float(measured[1]) if measured else None,
    )
    for code, measured in _REFUSALS.items()
}
_JOB_CODES = ("worker_lost", "blob_not_found", "bundle_error", "misconfigured", "decoder_unavailable", "internal_error")
_EXPLANATION_CODES = ("worker_lost", "blob_not_found", "not_available", "internal_error")


def _failures(codes: tuple[str, ...]) -> dict[str, Failure]:
    return {code: Failure(code=code, detail=f"{NOTHING_READ}A job may fail with this code.") for code in codes}


FAILURES = _failures(_JOB_CODES)
EXPLANATION_FAILURES = _failures(_EXPLANATION_CODES)

# A chess board of 64 x 64 pixels.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAAAAACPAi4CAAAAR0lEQVR42mN0YICABCi9gEQ+EwOFYNSAwWAA4wIy43/BaCAOq3QwWh6MGjBa"
    "HowaMFoejBowWh6MGjBaHowaMFoejBqAAwAAvJMf+cLE67MAAAAASUVORK5CYII="
)
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8"
    "ybqmx5moq6T/wAALCABAAEABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAABQD/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/9oACAEBAAA/ADDgM4DO"
    "AziBnAZwGcBo4DOAzgM4gZwGcBnAaOAzgM4DOIGcBnAZwGjgM4DOAziBnAZwGcBv/9k="
)
Files = dict[str, tuple[bytes, str]]  # name -> content and media type
FILES: Files = {"input.png": (PNG, "image/png"), "lungs.png": (PNG, "image/png")}


def explanation(method: Method) -> tuple[dict[str, Any], Files]:
    """What an explanation by `method` says, and its pictures."""
    said = {"class": CERTAIN.top_class, "networks": list(_NETWORKS), "picture": f"{method}.png", "rehearsal": True}
    return said, {f"{method}.png": (PNG, "image/png"), f"{method}.jpg": (JPEG, "image/jpeg")}
