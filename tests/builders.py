"""What tests are made of: a tiny bundle, drawn radiographs, and files of every format, without torch."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pydicom
from openjpeg.utils import encode_array
from PIL import Image, ImageDraw, ImageFilter
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.tiny import CLASSES as CLASSES
from tests.tiny import NETWORKS as NETWORKS
from tests.tiny import tiny_bundle as tiny_bundle

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEG2000Lossless,
    RLELossless,
)


def chest(seed: int, size: tuple[int, int] = (320, 288)) -> np.ndarray:
    """A drawn radiograph uint8 [H, W] of `size` (height, width): air, a body, two lungs, ribs and a heart."""
    rng = np.random.default_rng(seed)
    height, width = size
    canvas = Image.new("L", (width, height), 4)
    draw = ImageDraw.Draw(canvas)

    def ellipse(x: float, y: float, rx: float, ry: float, value: int) -> None:
        draw.ellipse([(x - rx) * width, (y - ry) * height, (x + rx) * width, (y + ry) * height], fill=value)

    dx, dy, grow = rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), rng.uniform(0.92, 1.05)
    ellipse(0.5 + dx, 0.75 + dy, 0.49, 0.68, 185)
    ellipse(0.5 + dx, 0.08 + dy, 0.13, 0.16, 185)
    for side in (-1, 1):
        x = 0.5 + dx + side * 0.21
        ellipse(x, 0.48 + dy, 0.135 * grow, 0.29 * grow, int(rng.integers(86, 100)))
    ellipse(0.54 + dx, 0.62 + dy, 0.12, 0.15, 205)
    draw.rectangle([(0.465 + dx) * width, 0, (0.535 + dx) * width, height], fill=215)
    soft = np.asarray(canvas.filter(ImageFilter.GaussianBlur(max(min(size) / 120, 1))), dtype=np.float32)
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    ribs = 7 * np.sin(2 * np.pi * 11 * (rows + 0.05 * np.linspace(-1, 1, width) ** 2)) * (soft > 40)
    noise = rng.normal(0, 3, size) + 6 * rng.normal() * (rows - 0.5) * (soft > 40)
    return np.clip(soft + ribs + noise, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- files


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W], uint16 [H, W] or uint8 [H, W, 3]."""
    return _saved_image(Image.fromarray(pixels), "PNG")


def jpeg(pixels: np.ndarray, *, quality: int = 92, orientation: int | None = None) -> bytes:
    """A JPEG of uint8 [H, W] or [H, W, 3], with an EXIF orientation where one is given."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    return _saved_image(Image.fromarray(pixels), "JPEG", quality=quality, exif=exif)


def tiff(*pages: np.ndarray) -> bytes:
    """A TIFF of one page or more, each uint8 or uint16 [H, W]."""
    first, *others = [Image.fromarray(page) for page in pages]
    return _saved_image(first, "TIFF", save_all=bool(others), append_images=others)


def bmp(pixels: np.ndarray) -> bytes:
    """A BMP of uint8 [H, W]."""
    return _saved_image(Image.fromarray(pixels), "BMP")


def animated_png(*frames: np.ndarray) -> bytes:
    """An APNG of several uint8 [H, W]."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    return _saved_image(first, "PNG", save_all=True, append_images=others)


def blank_png(width: int, height: int) -> bytes:
    """A gray PNG of any size in few bytes and little memory: a decompression bomb when it is large."""
    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def _saved_image(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# ---------------------------------------------------------------- DICOM


def dicom(
    pixels: np.ndarray,
    *,
    syntax: UID = ExplicitVRLittleEndian,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    window: tuple[float, float] | None = None,
    rescale: tuple[float, float] | None = None,
    padding: int | None = None,
    **attributes: object,
) -> bytes:
    """A Digital X-Ray object of uint8 or uint16 [H, W], or uint8 [H, W, 3], in one of `SYNTAXES`.

    `window` is centre and width, `rescale` slope and intercept; any other attribute is set by its keyword.
    """
    dataset = _header(DigitalXRayImageStorageForPresentation)
    dataset.Modality = "DX"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else photometric
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelSpacing = [0.143, 0.143]
    if window:
        dataset.WindowCenter, dataset.WindowWidth = window
    if rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
        dataset.RescaleType = "US"
    if padding is not None:
        dataset.PixelPaddingValue = padding
    _set_pixels(dataset, pixels, syntax)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return _dicom_bytes(dataset)


def dicom_without_pixels() -> bytes:
    """A DICOM object that describes an image and holds none."""
    return _dicom_bytes(_header(CTImageStorage))


def _set_pixels(dataset: FileDataset, pixels: np.ndarray, syntax: UID) -> None:
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax in (JPEGBaseline8Bit, JPEG2000Lossless):
        stream = jpeg(pixels) if syntax == JPEGBaseline8Bit else encode_array(pixels, use_mct=False)
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
    elif syntax.is_encapsulated:
        dataset.compress(syntax, pixels, generate_instance_uid=False)
    else:
        swap = syntax == ExplicitVRBigEndian and pixels.dtype.itemsize == 2
        data = (pixels.byteswap() if swap else pixels).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"


def _header(sop_class: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.PatientName, dataset.PatientID = "Nobody^Test", "TEST-1"
    dataset.ViewPosition = "PA"
    return dataset


def _dicom_bytes(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
