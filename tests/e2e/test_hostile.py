"""The tables of hostile input in docs/http.md, row by row, against a real service whose worker outlives them all."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from shared.settings import ROOT
from tests import builders, servers
from tests.e2e.conftest import UPLOAD_BYTES
from tests.servers import Service

FILM = builders.chest(3)
GOOD = builders.png(FILM)
BOUNDARY = b"frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}

Send = dict[str, Any]


class Row(NamedTuple):
    """One row of a table: what is sent, and what must come of it."""

    sent: str
    status: int
    job: str
    code: str


def rows(heading: str) -> list[Row]:
    """The rows of the table whose first column is called `heading`."""
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    table = page.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [Row(sent, int(status), job, code.strip("`")) for sent, status, job, code in cells]


FILES = rows("sent as `file`")
REQUESTS = rows("sent as the whole request")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    packed = zlib.compress(bytes(256 * 10**6), 1)
    return _png(300, 300, _chunk(b"zTXt", b"Comment\0\0" + packed))


def _deflate_bomb() -> bytes:
    """A block of deflate that was fully flushed may be repeated: few bytes, many zeros."""
    header = DicomBytesIO()
    whole = builders.dicom(FILM, syntax=DeflatedExplicitVRLittleEndian)
    meta = pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True)
    write_file_meta_info(header, meta.file_meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xfe") + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(16 * 2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return bytes(128) + b"DICM" + header.getvalue() + start + zeros * 256


def _bmp() -> bytes:
    data = bytearray(builders.bmp(FILM))
    struct.pack_into("<ii", data, 18, 60_000, 60_000)
    return bytes(data)


def _two_frames() -> bytes:
    data = pydicom.dcmread(io.BytesIO(builders.dicom(FILM)))
    data.NumberOfFrames, data.PixelData = 2, data.PixelData * 2
    out = io.BytesIO()
    data.save_as(out)
    return out.getvalue()


def _gif() -> bytes:
    out = io.BytesIO()
    Image.fromarray(FILM).save(out, "GIF")
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("film.png", GOOD)
    return out.getvalue()


def _broken_checksum() -> bytes:
    at = GOOD.index(b"IDAT") + 40
    return GOOD[:at] + bytes([GOOD[at] ^ 255]) + GOOD[at + 1 :]


def _file(data: bytes, name: str = "film.png", media_type: str = "image/png") -> Send:
    return {"files": {"file": (name, data, media_type)}}


def _with(**fields: str) -> Send:
    return {"files": {"file": GOOD}, "data": fields}


def _cut_form() -> Send:
    part = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s' % (BOUNDARY, GOOD)
    return {"content": part, "headers": FORM}


def _streamed(size: int) -> Iterator[bytes]:
    yield b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' % BOUNDARY
    for _ in range(0, size, 2**16):
        yield bytes(2**16)


RANDOM = np.random.default_rng(0)
TOO_MANY = UPLOAD_BYTES + 2 * 2**20

SENT: dict[str, Callable[[], Send]] = {
    "nothing: 0 bytes": lambda: _file(b""),
    "a PNG that is cut short": lambda: _file(GOOD[: len(GOOD) // 2]),
    "a JPEG that is cut short": lambda: _file(builders.jpeg(FILM)[:4000]),
    "a DICOM file that is cut short": lambda: _file(builders.dicom(FILM)[:20_000]),
    "a PNG of 100 megapixels": lambda: _file(builders.blank_png(10_000, 10_000)),
    "a PNG of 60 bytes that declares 65,000 x 65,000 pixels": lambda: _file(_png(65_000, 65_000, _chunk(b"IDAT", b""))),
    "a BMP that declares 60,000 x 60,000 pixels": lambda: _file(_bmp()),
    "a PNG with 256 MB of text packed into it": lambda: _file(_text_bomb()),
    "a deflated DICOM file that unpacks to 4 GB": lambda: _file(_deflate_bomb()),
    "random bytes after a PNG signature": lambda: _file(GOOD[:8] + RANDOM.bytes(5000)),
    "a PNG whose checksum is wrong": lambda: _file(_broken_checksum()),
    "an animated PNG": lambda: _file(builders.animated_png(FILM, FILM[::-1].copy())),
    "a TIFF of two pages": lambda: _file(builders.tiff(FILM, FILM[::-1].copy())),
    "a DICOM file of two frames": lambda: _file(_two_frames()),
    "a DICOM file without pixels": lambda: _file(builders.dicom_without_pixels()),
    "a blank page": lambda: _file(builders.png(np.full((300, 300), 128, np.uint8))),
    "a stamp of 64 x 60 pixels": lambda: _file(builders.png(builders.chest(1, (64, 60)))),
    "a PDF called `film.png`": lambda: _file(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n"),
    "a ZIP archive": lambda: _file(_zip(), "film.zip", "application/zip"),
    "a GIF": lambda: _file(_gif(), "film.gif", "image/gif"),
    "a text file": lambda: _file(b"Lungs are clear.\n", "film.txt", "text/plain"),
    "a good PNG declared as `text/html`": lambda: _file(GOOD, "film.html", "text/html"),
    "a good PNG called `../../../etc/passwd`": lambda: _file(GOOD, "../../../etc/passwd"),
    "a text where the file should be": lambda: {"files": {"other": (None, "x")}, "data": {"file": "film"}},
    "a form without a file": lambda: {"files": {"priority": (None, "stat")}},
    "a form with two files": lambda: {"files": [("file", GOOD), ("file", GOOD)]},
    "a form with an unknown field": lambda: _with(prority="stat"),
    "a form with metadata of 5,000 bytes": lambda: _with(metadata='{"a": "%s"}' % ("x" * 5000)),
    "a form with metadata that is no JSON object": lambda: _with(metadata="[1]"),
    "a form that ends before its closing boundary": _cut_form,
    "a form without a boundary": lambda: {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    "a JSON body": lambda: {"json": {"file": "film.png"}},
    "an upload that declares more bytes than are allowed": lambda: _file(bytes(TOO_MANY)),
    "an upload that sends more bytes than are allowed": lambda: {"content": _streamed(TOO_MANY), "headers": FORM},
}


@pytest.fixture(scope="module")
def service(on_sqlite: Service) -> Service:
    """The shared service: what it has seen before makes no difference."""
    return on_sqlite


@pytest.fixture(scope="module")
def pids(service: Service) -> list[int]:
    """The worker's process numbers before the first row is sent."""
    return servers.worker_pids(service.settings)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as found:
        yield found


def test_every_row_is_sent_and_nothing_else() -> None:
    assert [row.sent for row in (*FILES, *REQUESTS)] == list(SENT)
    assert len(FILES) >= 20


@pytest.mark.parametrize("row", [*FILES, *REQUESTS], ids=lambda row: re.sub(r"\W+", "-", row.sent))
def test_a_row_holds_and_the_worker_lives(row: Row, service: Service, pids: list[int], client: httpx.Client) -> None:
    before = len(service.jobs())
    options = SENT[row.sent]()
    headers = {"Prefer": "wait=60", **options.pop("headers", {})}
    answer = client.post("/v1/jobs", headers=headers, **options)
    if row.status == 202:
        _ended_as(row, answer)
    else:
        assert (answer.status_code, answer.json().get("code")) == (row.status, row.code), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(service.jobs()) == before
    good = client.post("/v1/jobs", headers={"Prefer": "wait=60"}, files={"file": GOOD})
    assert good.json()["status"] == "succeeded", good.text
    assert servers.worker_pids(service.settings) == pids


def _ended_as(row: Row, answer: httpx.Response) -> None:
    """201 is what 202 becomes when the client waits."""
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["status"] == row.job, job
    assert (job["reason"] or {}).get("code", "") == row.code, job["reason"]
    if row.job == "rejected":
        assert job["result"] is None
        assert job["reason"]["detail"]


def test_nothing_of_a_refused_upload_is_kept(service: Service) -> None:
    kept = {path.parent.name for path in (service.settings.home / "blobs").rglob("input")}
    assert kept == {job.id for job in service.jobs()}
