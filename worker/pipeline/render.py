"""Pictures: a heat map over a radiograph, the lungs' contour, and their encoding."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from scipy import ndimage

# The colour map inferno (van der Walt and Smith 2015, public domain) at every sixteenth of its 256 steps: perceptually
# uniform, readable without red or green, and in print.
STEPS = [0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 255]
INFERNO = [
    (0, 0, 4),
    (11, 7, 36),
    (33, 12, 74),
    (61, 9, 101),
    (87, 16, 110),
    (113, 25, 110),
    (138, 34, 106),
    (163, 44, 97),
    (188, 55, 84),
    (210, 70, 68),
    (228, 90, 49),
    (241, 115, 29),
    (249, 142, 9),
    (252, 172, 17),
    (249, 203, 53),
    (242, 234, 105),
    (252, 255, 164),
]
TABLE = np.stack([np.interp(np.arange(256), STEPS, channel) for channel in zip(*INFERNO, strict=True)], axis=1)
CONTOUR = (86, 180, 233)  # sky blue of Okabe and Ito's colour-blind safe set; the heat never has it
OPACITY = 0.6
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_UP = 2  # the filter that takes the row above away
CONTOUR_SHARE = 1 / 350  # width of the contour as a share of the image's shorter side


def overlay(pixels: np.ndarray, heat: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The radiograph float32 [H, W] in 0..1 under its heat float32 [H, W] in 0..1, as uint8 [H, W, 3].

    The heat covers as far as it is hot: cold regions stay as they were. `mask` bool [H, W] is drawn as a contour.
    """
    opacity = np.clip(heat, 0.0, 1.0) * OPACITY
    step = np.round(np.clip(heat, 0.0, 1.0) * 255).astype(np.uint8)
    film = np.clip(pixels, 0.0, 1.0) * 255.0
    out = np.empty((*pixels.shape, 3), dtype=np.uint8)
    for channel in range(3):  # one at a time: a large film in float32 and three channels would take a gigabyte
        colour = TABLE[:, channel].astype(np.float32)[step]
        out[..., channel] = np.round(film + opacity * (colour - film))
    if mask is not None:
        out[contour(mask)] = CONTOUR
    return out


def contour(mask: np.ndarray) -> np.ndarray:
    """The outline of `mask` bool [H, W], just outside of it: bool [H, W]."""
    width = max(1, round(min(mask.shape) * CONTOUR_SHARE))
    return ndimage.binary_dilation(mask, iterations=width) & ~mask


def gray8(pixels: np.ndarray) -> np.ndarray:
    """float32 [H, W] in 0..1 as uint8 [H, W]."""
    return np.round(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3], or of one bit per pixel of bool [H, W]; packed fast rather than tight."""
    if array.dtype == bool:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    height, width = array.shape[:2]
    flat = array.reshape(height, -1)
    rows = np.full((height, flat.shape[1] + 1), PNG_UP, dtype=np.uint8)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    # One filter and runs only: three times as fast as Pillow's choice of a filter for every row, and no larger.
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    colour = 2 if array.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    packed = packer.compress(rows.tobytes()) + packer.flush()
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def jpeg(array: np.ndarray) -> bytes:
    """A JPEG of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def read_png(data: bytes) -> np.ndarray:
    """What `png` wrote: uint8 or bool, [H, W] or [H, W, 3]."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image)


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG: its length, its name, its data and their checksum (PNG 1.2, section 3.2)."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
