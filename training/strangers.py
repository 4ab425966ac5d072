"""Images that are no chest films, or no proper ones: what the gate must refuse, and what a bundle says about them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shared.bundles import Bundle
from shared.errors import Rejected
from training import index
from training.answers import Answer
from worker.pipeline.analyze import analyze
from worker.pipeline.predictor import Predictor

SIDE = 320
SAMPLE = 100  # films that are also shown inverted and turned


def fates(
    bundle: Bundle, predictor: Predictor, asked: list[Answer], root: Path, others: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What comes back for pictures that are no chest films, for films shown wrongly, and for other diseases, by kind.

    `asked` are the answers to the test films of `root`; every `others`/KIND/FILE is shown as it is.
    """
    groups: dict[str, Iterable[bytes]] = {f"drawn/{name}": [png(picture)] for name, picture in drawn().items()}
    films = [a.item for a in asked if a.analysis and a.item.label in bundle.manifest.classes]
    films = films[:: max(len(films) // SAMPLE, 1)]
    pixels = [np.asarray(Image.open(root / item.image).convert("L")) for item in films]
    groups["inverted films"] = [png(inverted(p)) for p in pixels]
    groups["films on their side"] = [png(on_its_side(p)) for p in pixels]
    groups |= _others(others)
    found = {name: fate(said(bundle, predictor, data) for data in pictures) for name, pictures in groups.items()}
    diseases = [_code(a) for a in asked if a.item.label == index.OTHER]
    return found | ({"other disease": fate(diseases)} if diseases else {})


def said(bundle: Bundle, predictor: Predictor, data: bytes) -> str:
    """The code of the refusal of a file's bytes, or `uncertain` or `sure` where it is answered."""
    try:
        analysis = analyze(data, predictor, bundle).analysis
    except Rejected as error:
        return error.code
    return "uncertain" if analysis.uncertain else "sure"


def fate(codes: Iterable[str]) -> dict[str, Any]:
    """How many images were shown and refused, and how often each answer was given."""
    counts = Counter(codes)
    refused = counts.total() - counts["uncertain"] - counts["sure"]
    return {"images": counts.total(), "refused": refused, "answers": dict(counts)}


def drawn(seed: int = 0) -> dict[str, np.ndarray]:
    """Pictures uint8 [320, 320] or [320, 320, 3] by name, none of them a radiograph."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    clouds = Image.fromarray(rng.integers(0, 256, (10, 10)).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    ramp = np.broadcast_to(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, SIDE))
    colour = np.stack([ramp, ramp[::-1].T, noise], axis=-1)
    return {
        "blank_black": np.zeros((SIDE, SIDE), np.uint8),
        "blank_gray": np.full((SIDE, SIDE), 128, np.uint8),
        "noise": noise,
        "smooth_noise": np.asarray(clouds),
        "gradient": ramp.copy(),
        "colour": colour,
        "checkerboard": ((np.indices((SIDE, SIDE)) // 20).sum(axis=0) % 2 * 255).astype(np.uint8),
        "shapes": _shapes(rng),
        "text": _text(),
        "stamp": np.zeros((24, 24), np.uint8),
        "strip": np.tile(np.asarray(clouds)[:64], (1, 3)),
    }


def inverted(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] with black and white exchanged."""
    return 255 - pixels


def on_its_side(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] turned by a quarter."""
    return np.rot90(pixels).copy()


def _code(answer: Answer) -> str:
    if answer.analysis is None:
        return answer.refused
    return "uncertain" if answer.analysis.uncertain else "sure"


def _others(folder: Path | None) -> dict[str, Iterable[bytes]]:
    """The files of each subfolder, read when they are asked for."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    return {
        f"others/{kind.name}": (file.read_bytes() for file in sorted(kind.iterdir()) if file.is_file())
        for kind in kinds
    }


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _shapes(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), 20)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = (int(v) for v in (*rng.integers(20, SIDE - 20, 2), rng.integers(8, 60)))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=int(rng.integers(60, 255)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


def _text() -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(image)
    for row in range(12, SIDE - 12, 16):
        draw.text((12, row), "the quick brown fox jumps over the lazy dog", fill=0)
    return np.asarray(image)
