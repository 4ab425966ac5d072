"""DICOM pixels as the standard wants them shown: modality LUT, VOI LUT, photometric interpretation (PS3.3 C.11)."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from shared.errors import Unreadable
from worker.pipeline.decode import Radiograph, check_pixels, gray

GRAY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def decode(data: bytes, *, max_pixels: int) -> Radiograph:
    """The image of a DICOM file as it is meant to be shown, bright is dense; Unreadable with a code otherwise."""
    dataset = _read(data)
    _check(dataset, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = dataset.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like
        raise Unreadable("undecodable", f"the pixel data cannot be decoded: {error}") from error
    if dataset.PhotometricInterpretation in COLOUR:
        return _describe(dataset, *_gray_of_colour(dataset, values))
    return _describe(dataset, _shown(dataset, values), 0.0)


def _read(data: bytes) -> pydicom.Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            if data[128:132] != b"DICM" and "SOPClassUID" not in dataset:
                raise Unreadable("undecodable", "the content is no image and no DICOM file")
            if not getattr(dataset.file_meta, "TransferSyntaxUID", None):
                dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
            return dataset
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # a hostile file can fail anywhere in the parser
        raise Unreadable("undecodable", f"the DICOM file cannot be parsed: {error}") from error


def _check(dataset: pydicom.Dataset, max_pixels: int) -> None:
    if "PixelData" not in dataset:
        raise Unreadable("no_pixels", "the DICOM object holds no pixel data")
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        frames = int(dataset.get("NumberOfFrames") or 1)
        photometric = str(dataset.PhotometricInterpretation)
    except (AttributeError, TypeError, ValueError) as error:
        raise Unreadable("undecodable", f"the image description is incomplete: {error}") from error
    check_pixels(columns, rows, max_pixels)
    if frames > 1:
        raise Unreadable("multi_frame", f"the object holds {frames} frames, one is expected", value=frames, threshold=1)
    if photometric not in (*GRAY, *COLOUR):
        raise Unreadable("undecodable", f"photometric interpretation {photometric} is not supported")


def _shown(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray:
    """Gray values float32 [H, W] in 0..1 after modality LUT and VOI LUT, inverted for MONOCHROME1, padding black."""
    if values.ndim != 2:
        raise Unreadable("undecodable", f"a gray image of {values.ndim} dimensions")
    padding = _padding(dataset, values)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = apply_modality_lut(values, dataset)
            values = apply_voi_lut(values, dataset, index=0).astype(np.float32)
    except MemoryError:
        raise
    except Exception as error:  # malformed tables and windows
        raise Unreadable("undecodable", f"the lookup tables cannot be applied: {error}") from error
    kept = values if padding is None else values[~padding]
    if not kept.size or not np.isfinite(kept).all():
        raise Unreadable("undecodable", "the image is all padding or holds values that are no numbers")
    low, high = float(kept.min()), float(kept.max())
    shown = values - low
    shown /= max(high - low, 1e-6)
    np.clip(shown, 0.0, 1.0, out=shown)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        np.subtract(1.0, shown, out=shown)
    if padding is not None:
        shown[padding] = 0.0
    return shown


def _padding(dataset: pydicom.Dataset, values: np.ndarray) -> np.ndarray | None:
    """Where the pixels are padding (PS3.3 C.7.5.1.1.2): bool [H, W], or None where no pixel or every pixel is."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    low, high = sorted((_signed(first, values), _signed(last, values)))
    padding = (values >= low) & (values <= high)
    return padding if padding.any() and not padding.all() else None


def _signed(value: Any, values: np.ndarray) -> int:
    """A padding value read as unsigned where the pixels are signed, or the other way round."""
    bits = values.dtype.itemsize * 8
    number = int(value) % (1 << bits)
    return number - (1 << bits) if values.dtype.kind == "i" and number >= 1 << (bits - 1) else number


def _gray_of_colour(dataset: pydicom.Dataset, values: np.ndarray) -> tuple[np.ndarray, float]:
    if values.ndim != 3 or values.shape[-1] != 3:
        raise Unreadable("undecodable", "a colour image without three channels")
    shift = max(int(dataset.BitsStored) - 8, 0)
    return gray((values >> shift).astype(np.uint8))


def _describe(dataset: pydicom.Dataset, pixels: np.ndarray, chroma: float) -> Radiograph:
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    try:
        spacing_mm = (float(spacing[0]), float(spacing[1])) if spacing else None
    except (TypeError, ValueError, IndexError):
        spacing_mm = None
    view = str(dataset.get("ViewPosition") or "").strip()[:16] or None
    return Radiograph(pixels, chroma, int(dataset.BitsStored), "dicom", spacing_mm, view)
