"""Drawn pictures that are no chest films, from a seed: kinds for tuning the gate, and kinds it is only tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage, spatial

SIDE = 320
Draw = Callable[[np.random.Generator], np.ndarray]
ROWS, COLUMNS = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]


def pictures(kinds: Mapping[str, Draw], each: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """So many pictures of each kind, uint8 [320, 320] or [320, 320, 3] unless the kind is about size."""
    rng = np.random.default_rng(seed)
    return {name: [draw(rng) for _ in range(each)] for name, draw in kinds.items()}


def _blank(rng: np.random.Generator) -> np.ndarray:
    return np.full((SIDE, SIDE), rng.integers(0, 256), np.uint8)


def _noise(rng: np.random.Generator) -> np.ndarray:
    coarse = int(rng.choice([1, 1, 2, 4]))
    return np.kron(rng.integers(0, 256, (SIDE // coarse,) * 2), np.ones((coarse, coarse))).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator) -> np.ndarray:
    small = Image.fromarray(rng.integers(0, 256, (int(rng.integers(3, 24)),) * 2).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls with frequency, as it does in most pictures of the world."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / frequency ** rng.uniform(0.6, 2.0)
    return _stretched(np.fft.ifft2(spectrum).real)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return _stretched(np.cos(angle) * ROWS + np.sin(angle) * COLUMNS)


def _colour(rng: np.random.Generator) -> np.ndarray:
    return np.stack([_gradient(rng), _clouds(rng), _smooth_noise(rng)], axis=-1)


def _checkerboard(rng: np.random.Generator) -> np.ndarray:
    board = (np.indices((SIDE, SIDE)) // int(rng.integers(6, 60))).sum(axis=0) % 2
    return (rng.integers(0, 90) + board * rng.integers(60, 160)).astype(np.uint8)


def _waves(rng: np.random.Generator) -> np.ndarray:
    total = np.zeros((SIDE, SIDE))
    for _ in range(int(rng.integers(1, 4))):
        angle, rate = rng.uniform(0, np.pi), rng.uniform(3, 40)
        total += np.sin(rate * (np.cos(angle) * ROWS + np.sin(angle) * COLUMNS) + rng.uniform(0, 6))
    return _stretched(total)


def _shapes(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 20))):
        x, y = (int(v) for v in rng.integers(0, SIDE, 2))
        a, b = (int(v) for v in rng.integers(8, 90, 2))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=int(rng.integers(0, 256)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))))


def _ovals(rng: np.random.Generator) -> np.ndarray:
    """A pair of ovals on a third: what a child draws when it is asked for lungs."""
    field, dark = np.full((SIDE, SIDE), rng.uniform(0, 0.3)), rng.uniform(0, 0.5)
    field[(COLUMNS / rng.uniform(0.7, 1.1)) ** 2 + (ROWS / rng.uniform(0.7, 1.2)) ** 2 < 1] = rng.uniform(0.5, 1)
    apart, wide, high, low = (
        rng.uniform(0.3, 0.5),
        rng.uniform(0.15, 0.3),
        rng.uniform(0.3, 0.7),
        rng.uniform(-0.2, 0.2),
    )
    field[((np.abs(COLUMNS) - apart) / wide) ** 2 + ((ROWS - low) / high) ** 2 < 1] = dark
    field = ndimage.gaussian_filter(field, rng.uniform(0, 6)) + rng.normal(0, rng.uniform(0, 0.06), field.shape)
    return (field.clip(0, 1) * 255).astype(np.uint8)


def _text(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(image)
    letters, size = list("abcdefghijklmnopqrstuvwxyz      "), int(rng.integers(9, 26))
    for row in range(8, SIDE, size + 4):
        draw.text((8, row), "".join(rng.choice(letters, 60)), fill=int(rng.integers(0, 90)), font_size=size)
    return np.asarray(image)


def _stamp(rng: np.random.Generator) -> np.ndarray:
    return _clouds(rng)[:24, :24]


def _strip(rng: np.random.Generator) -> np.ndarray:
    return np.tile(_clouds(rng)[:64], (1, 3))


def _polygons(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 15))):
        corners = rng.integers(0, SIDE, (int(rng.integers(3, 6)), 2))
        draw.polygon([(int(x), int(y)) for x, y in corners], fill=int(rng.integers(0, 256)))
    return np.asarray(image)


def _rings(rng: np.random.Generator) -> np.ndarray:
    x, y = rng.uniform(-0.5, 0.5, 2)
    return _stretched(np.sin(rng.uniform(8, 60) * np.hypot(ROWS - y, COLUMNS - x)))


def _speckle(rng: np.random.Generator) -> np.ndarray:
    """Gray noise of a random grain under salt and pepper."""
    grain = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(0.5, 3))
    lost, salt = rng.random((2, SIDE, SIDE))
    return np.where(lost < 0.1, np.where(salt < 0.5, 0, 255), _stretched(grain)).astype(np.uint8)


def _cells(rng: np.random.Generator) -> np.ndarray:
    seeds = rng.uniform(-1, 1, (int(rng.integers(10, 120)), 2))
    near = spatial.KDTree(seeds).query(np.stack([ROWS, COLUMNS], axis=-1))[1]
    return rng.integers(0, 256, len(seeds)).astype(np.uint8)[near]


def _bars(rng: np.random.Generator) -> np.ndarray:
    """A bar code, or a bar chart where its bars end at different heights."""
    widths = rng.integers(3, 30, 120)
    shades = np.repeat(rng.choice([0, 60, 160, 255], 120), widths)[:SIDE]
    tops = np.repeat(rng.uniform(-1, 0.6, 120) if rng.random() < 0.5 else np.full(120, -1.0), widths)[:SIDE]
    return np.where(tops <= ROWS, shades, 255).astype(np.uint8)


def _spokes(rng: np.random.Generator) -> np.ndarray:
    angle, radius = np.arctan2(ROWS, COLUMNS), np.hypot(ROWS, COLUMNS)
    return _stretched(np.sin(int(rng.integers(2, 30)) * angle + rng.uniform(0, 20) * radius))


def _scribble(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(180, 256)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 12))):
        path = np.cumsum(rng.normal(0, 14, (80, 2)), axis=0) + rng.integers(40, SIDE - 40, 2)
        draw.line(
            [(float(x), float(y)) for x, y in path], fill=int(rng.integers(0, 100)), width=int(rng.integers(1, 7))
        )
    return np.asarray(image)


def _balls(rng: np.random.Generator) -> np.ndarray:
    """Shaded balls, lit from one side."""
    field = np.full((SIDE, SIDE), rng.uniform(0, 1))
    for _ in range(int(rng.integers(1, 9))):
        (y, x), r = rng.uniform(-0.8, 0.8, 2), rng.uniform(0.1, 0.6)
        away = ((ROWS - y) ** 2 + (COLUMNS - x) ** 2) / r**2
        field = np.where(away < 1, np.sqrt(np.clip(1 - away, 0, 1)) * 0.8 + (COLUMNS - x) * 0.3, field)
    return _stretched(field)


def _fractal(rng: np.random.Generator) -> np.ndarray:
    """A Julia set, by the number of steps to leave a circle."""
    z = (COLUMNS + 1j * ROWS) * 1.6
    c, steps = complex(rng.uniform(-0.9, 0.3), rng.uniform(0.1, 0.8)), np.zeros((SIDE, SIDE))
    for _ in range(40):
        inside = np.abs(z) < 4
        z[inside] = z[inside] ** 2 + c
        steps += inside
    return _stretched(np.sqrt(steps))


def _stretched(field: np.ndarray) -> np.ndarray:
    low, high = field.min(), field.max()
    return ((field - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


# What the view network is trained on and what anyone may look at while choosing limits.
TUNED: dict[str, Draw] = {
    "blank": _blank,
    "noise": _noise,
    "smooth_noise": _smooth_noise,
    "clouds": _clouds,
    "gradient": _gradient,
    "colour": _colour,
    "checkerboard": _checkerboard,
    "waves": _waves,
    "shapes": _shapes,
    "ovals": _ovals,
    "text": _text,
    "stamp": _stamp,
    "strip": _strip,
}
# What nothing was trained on or chosen by: only figures are made of them.
HELD_OUT: dict[str, Draw] = {
    "polygons": _polygons,
    "rings": _rings,
    "speckle": _speckle,
    "cells": _cells,
    "bars": _bars,
    "spokes": _spokes,
    "scribble": _scribble,
    "balls": _balls,
    "fractal": _fractal,
}
