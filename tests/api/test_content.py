"""What a file is, by its first bytes."""

from __future__ import annotations

import contextlib
import io

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import content
from shared.errors import UnsupportedType
from tests import builders

FILM = builders.chest(3, (160, 144))
KNOWN = {"image/png", "image/jpeg", "image/tiff", "image/bmp", "application/dicom"}


def bare(explicit: bool, big: bool = False) -> bytes:
    """A DICOM data set without preamble and without file meta information, as old devices write it."""
    dataset = pydicom.dcmread(io.BytesIO(builders.dicom(FILM)))
    out = io.BytesIO()
    pydicom.dcmwrite(out, pydicom.Dataset(dataset), implicit_vr=not explicit, little_endian=not big)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (builders.png(FILM), "image/png"),
        (builders.jpeg(FILM), "image/jpeg"),
        (builders.tiff(FILM), "image/tiff"),
        (builders.bmp(FILM), "image/bmp"),
        (builders.dicom(FILM), "application/dicom"),
        (bare(explicit=True), "application/dicom"),
        (bare(explicit=False), "application/dicom"),
    ],
)
def test_a_file_is_what_it_holds(data: bytes, media_type: str) -> None:
    assert content.media_type(data[: content.HEAD_BYTES]) == media_type


@pytest.mark.parametrize(
    "data",
    [
        b"BM is how this letter begins, and it is no bitmap.",
        b"II* and a text",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x08\x00\x05\x00",
        b"\x00" * 200,
        b"DICM",
        b"x" * 128 + b"DICX",
    ],
)
def test_what_only_looks_like_an_image_is_none(data: bytes) -> None:
    with pytest.raises(UnsupportedType):
        content.media_type(data)


@given(st.binary(max_size=600))
def test_no_bytes_break_it(data: bytes) -> None:
    with contextlib.suppress(UnsupportedType):
        assert content.media_type(data) in KNOWN


@given(st.binary(max_size=200), st.sampled_from([b"\x08\0\x05\0", b"\x02\0\x10\0", b"\0\x08\0\x05"]))
def test_no_elements_break_it(data: bytes, start: bytes) -> None:
    with contextlib.suppress(UnsupportedType):
        assert content.media_type(start + data) == "application/dicom"
