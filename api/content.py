"""What a file is, by its first bytes; a declared type or a file name is never believed."""

from __future__ import annotations

import struct

from shared.errors import UnsupportedType

HEAD_BYTES = 4096

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes of the known information headers

EXPLICIT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
UNDEFINED_LENGTH = 0xFFFFFFFF
ELEMENTS_NEEDED = 3
LARGEST_HEADER_VALUE = 2**16


def media_type(head: bytes) -> str:
    """The media type of a file that begins with `head` (HEAD_BYTES of it); UnsupportedType when it is none of ours."""
    if head.startswith(PNG):
        return "image/png"
    if head.startswith(JPEG):
        return "image/jpeg"
    if head.startswith(TIFF):
        return "image/tiff"
    if _is_bmp(head):
        return "image/bmp"
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "application/dicom"
    raise UnsupportedType()


def _is_bmp(head: bytes) -> bool:
    """`BM` alone is two letters of text: the information header's size must be one that exists."""
    if len(head) < 26 or head[:2] != b"BM":
        return False
    pixels_at, header_size = struct.unpack_from("<II", head, 10)
    return header_size in BMP_HEADERS and pixels_at >= 14 + header_size


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without preamble (PS3.10 needs one, old devices do not write it): its first elements parse."""
    return any(_elements(head, order, explicit) for order in "<>" for explicit in (True, False))


def _elements(head: bytes, order: str, explicit: bool) -> bool:
    """Whether `head` begins with elements of group 0002 or 0008, in ascending order and of sane lengths."""
    at, previous, found = 0, (0, -1), 0
    while found < ELEMENTS_NEEDED:
        element = _element(head, at, order, explicit)
        if element is None:
            return False
        tag, length, size = element
        if tag <= previous or (not found and tag[0] not in (2, 8)) or tag[0] > 0x0020:
            return False
        previous, found = tag, found + 1
        if length == UNDEFINED_LENGTH or at + size + length >= len(head):
            # The rest lies beyond what was read: two sound elements are enough.
            return found >= 2
        at += size + length
    return True


def _element(head: bytes, at: int, order: str, explicit: bool) -> tuple[tuple[int, int], int, int] | None:
    """The tag of the element at `at`, the length of its value and the size of its header; PS3.5, 7.1."""
    if at + 12 > len(head):
        return None
    group, number = struct.unpack_from(order + "HH", head, at)
    if not explicit:
        length, size = struct.unpack_from(order + "I", head, at + 4)[0], 8
    elif head[at + 4 : at + 6] not in EXPLICIT_VRS:
        return None
    elif head[at + 4 : at + 6] in LONG_VRS:
        length, size = struct.unpack_from(order + "I", head, at + 8)[0], 12
    else:
        length, size = struct.unpack_from(order + "H", head, at + 6)[0], 8
    if length != UNDEFINED_LENGTH and (length % 2 or length > LARGEST_HEADER_VALUE):
        return None
    return (group, number), length, size
