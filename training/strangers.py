"""Images that are no chest films, or no proper ones: what the gate must refuse, drawn from a seed."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 320


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
