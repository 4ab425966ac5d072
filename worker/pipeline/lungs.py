"""Find the lungs, cut them out, and make the tensor that every classifier sees, in training and in serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from shared.bundles import LungsNetwork, Preprocessing
from worker.pipeline.predictor import Segmenter

MIN_PART = 0.01  # smaller islands of the mask, as a share of the image, are noise


@dataclass(frozen=True)
class Lungs:
    """The lungs in one image: `mask` bool [H, W] and the `box` left, top, right, bottom of their square crop.

    The box may leave the image; `certainty` is the network's mean probability inside the mask, 0..1, and 1 where
    people drew the mask.
    """

    mask: np.ndarray
    box: tuple[int, int, int, int]
    certainty: float = 1.0

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Lung area in the whole image, in its left half and in its right half, as shares of the whole image."""
        half = self.mask.shape[1] // 2
        left, right = int(self.mask[:, :half].sum()), int(self.mask[:, half:].sum())
        return (left + right) / self.mask.size, left / self.mask.size, right / self.mask.size


def find(pixels: np.ndarray, predictor: Segmenter, network: LungsNetwork, preprocessing: Preprocessing) -> Lungs:
    """The lungs in `pixels` float32 [H, W] in 0..1; an empty mask where none are found."""
    tensor = segmentation_tensor(pixels, network.input_size)
    probability = predictor.segment(tensor[None, None])[0]
    probability = unsquare(probability, pixels.shape)
    mask = _cleaned(probability >= network.threshold)
    certainty = float(probability[mask].mean()) if mask.any() else 0.0
    return Lungs(mask, crop_box(mask, preprocessing.crop_margin), certainty)


def segmentation_tensor(pixels: np.ndarray, size: int) -> np.ndarray:
    """Standardised float32 [size, size]: padded to a square, resized, percentiles 1 and 99 at about -1 and 1."""
    square = resize(square_of(pixels), size)
    low, high = np.percentile(square, (1, 99))
    return np.clip(2 * (square - low) / max(high - low, 1e-6) - 1, -1.5, 1.5).astype(np.float32)


def square_of(pixels: np.ndarray) -> np.ndarray:
    """`pixels` [H, W] centred in a square of zeros [S, S], S the longer side."""
    height, width = pixels.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def unsquare(square: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `square_of` and the resize: float32 [S, S] back to `shape` [H, W]."""
    side = max(shape)
    full = resize(square, side)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    return full[top : top + shape[0], left : left + shape[1]]


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize with antialiasing of float32 [S, S] to [size, size]."""
    if pixels.shape == (size, size):
        return pixels.astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_box(mask: np.ndarray, margin: float) -> tuple[int, int, int, int]:
    """The square around the lungs with a margin: left, top, right, bottom; all zero where the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = round(max(height, width) * (1 + 2 * margin))
    left = round((columns[0] + columns[-1] + 1 - side) / 2)
    top = round((rows[0] + rows[-1] + 1 - side) / 2)
    return left, top, left + side, top + side


def cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box of `pixels` [H, W] as float32 [S, S]; what lies outside the image is zero."""
    left, top, right, bottom = box
    out = np.zeros((bottom - top, right - left), dtype=np.float32)
    height, width = pixels.shape
    y0, y1, x0, x1 = max(top, 0), min(bottom, height), max(left, 0), min(right, width)
    out[y0 - top : y1 - top, x0 - left : x1 - left] = pixels[y0:y1, x0:x1]
    return out


def tensor(pixels: np.ndarray, lungs: Lungs, preprocessing: Preprocessing) -> np.ndarray:
    """The classifiers' input float32 [224, 224]: lungs at mean 0, deviation 1, cut at +-clip; zero outside."""
    size = preprocessing.input_size
    crop = resize(cut(pixels, lungs.box), size)
    inside = resize(cut(lungs.mask.astype(np.float32), lungs.box), size) >= 0.5
    growth = round(preprocessing.mask_dilation * size)
    if growth:
        inside = ndimage.binary_dilation(inside, iterations=growth) & (resize_inside(pixels.shape, lungs.box, size))
    if not inside.any():
        return np.zeros((size, size), dtype=np.float32)
    values = crop[inside]
    normal = (crop - values.mean()) / max(float(values.std()), 1e-3)
    return np.where(inside, np.clip(normal, -preprocessing.clip, preprocessing.clip), 0.0).astype(np.float32)


def resize_inside(shape: tuple[int, int], box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """Which pixels of the crop [size, size] lie inside the image of `shape`: bool."""
    left, top, right, _ = box
    step = (right - left) / size
    centres = (np.arange(size) + 0.5) * step
    rows = (centres + top >= 0) & (centres + top < shape[0])
    columns = (centres + left >= 0) & (centres + left < shape[1])
    return rows[:, None] & columns[None, :]


def uncrop(heat: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """A map on the crop, float32 [h, w], back on the whole image float32 [H, W]; zero outside the box."""
    left, top, right, bottom = box
    full = np.zeros(shape, dtype=np.float32)
    patch = resize(heat, right - left)
    y0, y1, x0, x1 = max(top, 0), min(bottom, shape[0]), max(left, 0), min(right, shape[1])
    full[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return full


def _cleaned(mask: np.ndarray) -> np.ndarray:
    """The two largest parts of the mask with their holes filled: bool [H, W]."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    kept = [i + 1 for i in np.argsort(sizes)[::-1][:2] if sizes[i] >= MIN_PART * mask.size]
    return ndimage.binary_fill_holes(np.isin(labels, kept))
