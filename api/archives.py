"""Zip archives of strangers: read without believing their headers, within bounds on entries, bytes and ratio."""

from __future__ import annotations

import errno
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, NamedTuple, cast

from shared.errors import Invalid, StorageFull, TooLarge

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
PACKED = (*ZIP, b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd")
TAR, TAR_AT = b"ustar", 257
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # LZMA may ask for gigabytes of memory
ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # of the traditional kind, strong, and with a masked directory
LARGEST_RATIO = 100  # radiographs pack 2 to 20 times smaller
RATIO_FROM_BYTES = 2**24
ENTRIES_PER_FILE = 4  # folders and the hidden twin that macOS gives to every file
DIRECTORY_BYTES_PER_ENTRY = 512
CHUNK_BYTES = 2**17
SPOOL_BYTES = 4 * 2**20
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
SYSTEMS_OWN = ("__MACOSX", "Thumbs.db", "desktop.ini")
SHOWN = 200  # characters of a name that an error shows
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
    OSError,
)


class Limits(NamedTuple):
    """How much one archive may hold: files, bytes of one file and bytes of all, unpacked."""

    files: int
    file_bytes: int
    bytes: int


class Skipped(NamedTuple):
    """An entry that is no file of the client's: `directory`, `hidden`, `dicomdir` or `duplicate`."""

    name: str
    reason: str


@dataclass
class Archive:
    """An open archive: its files in order, what is none, and how many bytes were unpacked so far."""

    zip: zipfile.ZipFile
    size: int
    limits: Limits
    files: list[zipfile.ZipInfo] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unpacked: int = 0


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with `head` is a zip archive."""
    return head.startswith(ZIP)


def is_packed(head: bytes) -> bool:
    """Whether a file that begins with `head` is an archive or a compressed file of any known kind."""
    return head.startswith(PACKED) or head[TAR_AT : TAR_AT + len(TAR)] == TAR


def label(name: str) -> str:
    """What a file name says, as a label and never as a path: no root, no drive, no way up; may be empty.

    Raises Invalid when it holds what cannot be printed.
    """
    if UNPRINTABLE.search(name):
        raise Invalid("The name holds characters that cannot be printed.", code="invalid_name")
    parts = re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


@contextmanager
def opened(file: BinaryIO, limits: Limits) -> Iterator[Archive]:
    """The zip archive in `file`, its directory read and sorted out.

    Raises Invalid (`malformed_archive`, `encrypted_archive`) or TooLarge (`too_many_files`).
    """
    size, most = file.seek(0, 2), ENTRIES_PER_FILE * limits.files
    with _sound("its directory"):
        directory = zipfile.ZipFile(cast(IO[bytes], _Measured(file, most * DIRECTORY_BYTES_PER_ENTRY, limits.files)))
    with directory:
        archive = Archive(directory, size, limits)
        for info in directory.infolist():
            _sort(archive, info)
        if len(archive.files) > limits.files or len(directory.infolist()) > most:
            raise too_many(limits.files)
        yield archive


def unpack(archive: Archive, info: zipfile.ZipInfo) -> BinaryIO:
    """One file of the archive at its start, its checksum verified; the caller closes it.

    What is larger than a file may be is cut off one chunk after that. Raises Invalid (`malformed_archive`,
    `archive_ratio`, `unsupported_compression`), TooLarge or StorageFull, by what is read and not by what is declared.
    """
    if info.compress_type not in METHODS:
        what = f"{info.filename[:SHOWN]} is packed with a method other than deflate."
        raise Invalid(what, code="unsupported_compression")
    spool = cast(BinaryIO, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115  # handed to the caller
    try:
        with _sound(f"the entry {info.filename[:SHOWN]}"), archive.zip.open(info) as packed:
            for chunk in iter(lambda: packed.read(CHUNK_BYTES), b""):
                _count(archive, len(chunk))
                spool.write(chunk)
                if spool.tell() > archive.limits.file_bytes:
                    break
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


def too_many(files: int) -> TooLarge:
    """The error of a batch with more than `files` files."""
    return TooLarge(f"A batch may hold {files} files.", code="too_many_files", limit_files=files)


class _Measured:
    """A file that refuses to be read more than `most` bytes at a time.

    zipfile reads a directory at once, as large as the archive says it is, and makes an object of every 46 bytes of it.
    """

    def __init__(self, file: BinaryIO, most: int, files: int) -> None:
        self._file, self._most, self._files = file, max(most, CHUNK_BYTES), files

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(data) > self._most:
            raise too_many(self._files)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _sort(archive: Archive, info: zipfile.ZipInfo) -> None:
    """A file of the client's, or something that comes with archives."""
    parts = re.split(r"[/\\]", info.filename)
    if (info.filename and not parts[-1]) or stat.S_ISDIR(info.external_attr >> 16):
        archive.skipped.append(Skipped(info.filename, "directory"))
    elif any(part in SYSTEMS_OWN or (part.startswith(".") and part.strip(".")) for part in parts):
        archive.skipped.append(Skipped(info.filename, "hidden"))
    elif parts[-1].upper() == "DICOMDIR":
        archive.skipped.append(Skipped(info.filename, "dicomdir"))
    elif info.flag_bits & ENCRYPTED:
        raise Invalid("The archive is encrypted.", code="encrypted_archive")
    else:
        archive.files.append(info)


def _count(archive: Archive, size: int) -> None:
    archive.unpacked += size
    if archive.unpacked > archive.limits.bytes:
        raise TooLarge(f"A batch may hold {archive.limits.bytes} bytes, unpacked.", limit_bytes=archive.limits.bytes)
    if archive.unpacked > max(RATIO_FROM_BYTES, LARGEST_RATIO * archive.size):
        raise Invalid(f"The archive unpacks to more than {LARGEST_RATIO} times its size.", code="archive_ratio")


@contextmanager
def _sound(what: str) -> Iterator[None]:
    """What zipfile and zlib raise about bytes that are no archive."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull() from error
        raise Invalid(f"The archive is damaged: {what} cannot be read.", code="malformed_archive") from error
