"""Zip archives of strangers: what is taken, what is skipped, and what is refused before it can do harm."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import zipfile
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import archives
from api.archives import Limits
from shared.errors import HilumError, Invalid, TooLarge

LIMITS = Limits(files=10, file_bytes=2**20, bytes=2**22)
FIRST, SECOND = b"the first film" * 100, b"the second film" * 100


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def read(data: bytes, limits: Limits = LIMITS) -> tuple[dict[str, bytes], dict[str, str]]:
    """What is taken, by name, and what is skipped and why."""
    found = {}
    with archives.opened(io.BytesIO(data), limits) as archive:
        for info in archive.files:
            with archives.unpack(archive, info) as file:
                found[info.filename] = file.read()
        return found, {skipped.name: skipped.reason for skipped in archive.skipped}


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(HilumError) as raised:
        read(data, limits)
    return raised.value.code


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_come_out_as_they_went_in(method: int):
    data = zipped(("a.png", FIRST), ("b/c.png", SECOND), ("empty", b""), method=method)
    assert read(data) == ({"a.png": FIRST, "b/c.png": SECOND, "empty": b""}, {})


def test_what_comes_with_archives_is_skipped_and_named():
    link = zipfile.ZipInfo("folder-without-a-slash")
    link.external_attr = 0o040755 << 16
    names = ["a/", "win\\", "__MACOSX/._x.png", ".DS_Store", "a/.hidden/x.png", "Thumbs.db", "DICOMDIR", "dicomdir"]
    nothing = [(name, b"") for name in names]
    found, skipped = read(zipped(*nothing, (link, b""), ("a/x.png", FIRST), ("../y.png", SECOND)))
    assert set(found) == {"a/x.png", "../y.png"}
    assert skipped["a/"] == skipped["win\\"] == skipped["folder-without-a-slash"] == "directory"
    assert skipped["__MACOSX/._x.png"] == skipped[".DS_Store"] == skipped["a/.hidden/x.png"] == "hidden"
    assert skipped["Thumbs.db"] == "hidden"
    assert skipped["DICOMDIR"] == skipped["dicomdir"] == "dicomdir"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("film.png", "film.png"),
        ("ward/film.png", "ward/film.png"),
        ("../../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("C:\\Windows\\film.png", "Windows/film.png"),
        ("..\\..\\film.png", "film.png"),
        ("a/./b//c/../d", "a/b/c/d"),
        ("..", ""),
        ("", ""),
        ("röntgen 胸部.png", "röntgen 胸部.png"),
    ],
)
def test_a_name_is_a_label_and_no_path(name: str, label: str):
    assert archives.label(name) == label


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x1b[31mred", "a\x7f", "\ud800"])
def test_a_name_that_cannot_be_printed_is_refused(name: str):
    with pytest.raises(Invalid) as raised:
        archives.label(name)
    assert raised.value.code == "invalid_name"


@given(st.text())
def test_no_label_leaves_its_place(name: str):
    try:
        found = archives.label(name)
    except Invalid:
        return
    assert not {"", ".", ".."} & set(found.split("/")) or found == ""
    assert os.path.normpath(f"/store/{found}").startswith("/store")


def test_more_files_than_allowed_are_refused():
    assert len(read(zipped(*((f"{n}.png", b"x") for n in range(10))))[0]) == 10
    assert refused(zipped(*((f"{n}.png", b"x") for n in range(11)))) == "too_many_files"


def test_folders_count_too_but_less():
    films = [(f"{n}.png", b"x") for n in range(10)]
    assert len(read(zipped(*films, *((f"{n}/", b"") for n in range(30))))[0]) == 10
    assert refused(zipped(*films, *((f"{n}/", b"") for n in range(31)))) == "too_many_files"


def test_a_huge_directory_is_refused_before_it_becomes_objects():
    entry = b"PK\x01\x02" + b"\0" * 42
    count = 4_000_000
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, count * 46, 0, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with SpooledTemporaryFile() as file:
        for _ in range(count // 100_000):
            file.write(entry * 100_000)
        file.write(end)
        with pytest.raises(TooLarge) as raised, archives.opened(file, LIMITS):  # type: ignore[arg-type]
            pass
    assert raised.value.code == "too_many_files"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB; the objects would be 2 GB


def test_the_bytes_are_counted_and_not_believed():
    """The directory says that each entry holds one byte."""
    limits = LIMITS._replace(bytes=2**20)
    data = bytearray(zipped(("bomb.png", os.urandom(2**20)), ("more.png", b"x")))
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
    data[at + 24 : at + 28] = struct.pack("<I", 1)
    assert refused(bytes(data), limits) in ("malformed_archive", "too_large")
    assert refused(zipped(("a", os.urandom(2**19)), ("b", os.urandom(2**19)), ("c", b"x")), limits) == "too_large"
    read(zipped(("a", os.urandom(2**19)), ("b", os.urandom(2**19))), limits)


def test_a_larger_file_is_cut_where_the_inspection_refuses_it():
    data = os.urandom(3 * 2**20)
    found, _ = read(zipped(("large.png", data)))
    assert LIMITS.file_bytes < len(found["large.png"]) < len(data)


def test_a_bomb_is_refused_by_its_ratio():
    limits = Limits(files=10, file_bytes=2**30, bytes=2**30)
    assert refused(zipped(("zeros", bytes(2**25))), limits) == "archive_ratio"


def test_entries_that_share_their_bytes_are_refused_by_the_ratio():
    """Many entries of the directory name the same packed bytes."""
    single = zipped(("a.png", bytes(2**20)))
    at, end = single.index(b"PK\x01\x02"), single.index(b"PK\x05\x06")
    directory = single[at:end] * 400
    tail = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 400, 400, len(directory), at, 0)
    assert refused(single[:at] + directory + tail, Limits(1000, 2**30, 2**30)) == "archive_ratio"


@pytest.mark.parametrize("bit", [0x0001, 0x0041, 0x2001])
def test_an_encrypted_archive_is_refused(bit: int):
    data = bytearray(zipped(("a.png", FIRST)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data[at : at + 2] = struct.pack("<H", bit)
    assert refused(bytes(data)) == "encrypted_archive"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_than_deflate_are_refused(method: int):
    assert refused(zipped(("a.png", FIRST), method=method)) == "unsupported_compression"


def test_a_wrong_checksum_is_refused():
    data = bytearray(zipped(("a.png", FIRST), method=zipfile.ZIP_STORED))
    data[data.index(FIRST) + 5] ^= 1
    assert refused(bytes(data)) == "malformed_archive"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"PK\x03\x04" + os.urandom(200),
        lambda data: b"PK\x05\x06" + bytes(3),
        lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x09"),
        lambda data: data[:30] + bytes(40) + data[70:],
    ],
)
def test_a_damaged_archive_is_refused(damage: Callable[[bytes], bytes]):
    assert refused(damage(zipped(("a.png", FIRST), ("b.png", SECOND)))) == "malformed_archive"


@given(st.data())
def test_no_damage_raises_anything_else(data: Any):
    """Whatever is written over an archive, it is read or it is refused."""
    mutable = bytearray(zipped(("a.png", FIRST[:64]), ("folder/", b""), ("b.png", SECOND)))
    for _ in range(data.draw(st.integers(1, 6))):
        mutable[data.draw(st.integers(0, len(mutable) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Invalid, TooLarge):
        read(bytes(mutable))


@pytest.mark.parametrize(
    ("head", "packed"),
    [
        (b"PK\x03\x04", True),
        (b"PK\x05\x06", True),
        (b"\x1f\x8b\x08", True),
        (b"7z\xbc\xaf\x27\x1c", True),
        (b"Rar!\x1a\x07\x01", True),
        (b"\xfd7zXZ\0", True),
        (bytes(257) + b"ustar", True),
        (b"\x89PNG\r\n\x1a\n", False),
        (bytes(128) + b"DICM", False),
        (b"", False),
    ],
)
def test_archives_within_archives_are_told_by_content(head: bytes, packed: bool):
    assert archives.is_packed(head) is packed
