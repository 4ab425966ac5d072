"""Bytes of a PNG, JPEG, TIFF, BMP or DICOM file into one gray radiograph."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import Unreadable

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Radiograph:
    """One image: `pixels` float32 [H, W] in 0..1, bright is dense; `chroma` is the mean spread of its colours, 0..1."""

    pixels: np.ndarray
    chroma: float
    bits: int
    format: str
    spacing_mm: tuple[float, float] | None = None
    view: str | None = None


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Radiograph:
    """Decode one file; Unreadable with a code when no single image of at most `max_pixels` pixels can be had."""
    if not data:
        raise Unreadable("undecodable", "the file is empty")
    if data[128:132] == b"DICM" or not _is_raster(data):
        from worker.pipeline import dicom  # pydicom is loaded for DICOM alone

        return dicom.decode(data, max_pixels=max_pixels)
    return _decode_raster(data, max_pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse what would not fit before a byte of it is decoded."""
    if width * height > max_pixels:
        raise Unreadable(
            "too_many_pixels",
            f"{width} x {height} pixels are more than this service decodes",
            value=float(width * height),
            threshold=float(max_pixels),
        )


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Gray values as float32 [H, W] in 0..1: by 255 for 8 bits, by their own range for deeper images."""
    if bits <= 8:
        return np.divide(values, np.float32(255.0), dtype=np.float32)
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise Unreadable("undecodable", "the image holds values that are no numbers")
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-6)


def gray(rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """Luminance float32 [H, W] in 0..1 and mean colour spread of an RGB image uint8 [H, W, 3]."""
    spread = float((rgb.max(axis=-1).astype(np.float32) - rgb.min(axis=-1)).mean() / 255.0)
    return rgb.astype(np.float32) @ LUMA / 255.0, spread


def _is_raster(data: bytes) -> bool:
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def _decode_raster(data: bytes, max_pixels: int) -> Radiograph:
    Image.MAX_IMAGE_PIXELS = None  # the limit below is ours, and it comes before any decoding
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_pixels(*image.size, max_pixels)
                frames = getattr(image, "n_frames", 1)
                if frames > 1:
                    raise Unreadable("multi_frame", f"the file holds {frames} images, one is expected")
                image.load()
                return _radiograph(image, image.format or "")
    except UnidentifiedImageError as error:
        raise Unreadable("undecodable", "the content is no readable image") from error
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, IndexError) as error:
        code = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise Unreadable(code, f"the image cannot be decoded: {error}") from error


def _radiograph(image: Image.Image, name: str) -> Radiograph:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        return Radiograph(scaled(np.asarray(upright), 16), 0.0, 16, name.lower())
    if upright.mode in ("1", "L", "LA"):
        return Radiograph(scaled(np.asarray(upright.convert("L")), 8), 0.0, 8, name.lower())
    pixels, chroma = gray(np.asarray(upright.convert("RGB")))
    return Radiograph(pixels, chroma, 8, name.lower())
