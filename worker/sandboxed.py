"""The inside of the sandbox (`python -m worker.sandboxed`): decoders imported once, a limited fork for each file."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import mmap
import os
import resource
import signal
import sys
from dataclasses import fields
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from shared.errors import Rejected
from worker.pipeline import decode
from worker.pipeline.decode import Radiograph
from worker.sandbox import SIZE, STATUS, read_exactly, write_all

DATA, ANSWER = 0, 1
PRELOADED = (
    "worker.pipeline.dicom",
    "pydicom.pixels.decoders",
    "pydicom.pixels.processing",
    "gdcm",
    "jpeg_ls",
    "openjpeg",
)
MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module does not name it
OPEN_FILES = 16
DETAIL_CHARS = 300
CLOSED = 3  # exit status of a fork that found no file, because the worker closed its end


def serve(status: int, memory: int, max_pixels: int, memory_bytes: int, timeout_s: float) -> None:
    """Keep one fork waiting for a file until the worker closes its end; no file makes this raise."""
    # A platform that stops a worker may ask all of its processes: the file in hand would be said to break the decoder.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _preload()
    pixels = mmap.mmap(memory, max_pixels * 4)
    os.close(memory)
    ended = 0
    while not os.WIFEXITED(ended) or os.WEXITSTATUS(ended) != CLOSED:
        child = os.fork()
        if child == 0:
            os.close(status)
            _decode_and_end(pixels, max_pixels, memory_bytes, timeout_s)
        write_all(status, STATUS.pack(ended))  # only now: when the worker reads it, the next fork is there
        _, ended = os.waitpid(child, 0)


def _preload() -> None:
    """Import what a file may need, so that no fork has to: half a second once instead of each time."""
    Image.init()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # which codecs are installed is not decided here
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # keeps the collector of a fork from touching, and so copying, every page


def _decode_and_end(pixels: mmap.mmap, max_pixels: int, memory_bytes: int, timeout_s: float) -> NoReturn:
    """Decode one file in the fork and leave it without any clean-up of the helper's."""
    code = 1
    try:
        _limit(memory_bytes, timeout_s)
        data = read_exactly(DATA, SIZE.unpack(read_exactly(DATA, SIZE.size))[0])
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        said, radiograph = _decoded(data, max_pixels, memory_bytes)
        if radiograph is not None:
            _share(radiograph.pixels, pixels)
        write_all(ANSWER, json.dumps(said).encode() + b"\n")
        code = 0
    except ConnectionResetError:
        code = CLOSED
    finally:
        os._exit(code)


def _share(image: np.ndarray, pixels: mmap.mmap) -> None:
    with contextlib.suppress(OSError):  # older kernels map page by page, which takes twice as long
        pixels.madvise(MADV_POPULATE_WRITE, 0, -(-image.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    np.frombuffer(pixels, dtype=np.float32, count=image.size)[:] = image.ravel()


def _limit(memory_bytes: int, timeout_s: float) -> None:
    """Limits that the kernel keeps, even while a decoder loops in C: its alarm kills, nothing catches it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    seconds = math.ceil(timeout_s) + 1
    for limit, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(limit, (most, most))
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(file, b"1000")  # where memory runs out, the fork goes and the worker stays
        os.close(file)


def _decoded(data: bytes, max_pixels: int, memory_bytes: int) -> tuple[dict[str, Any], Radiograph | None]:
    """What to answer, and the image where there is one."""
    try:
        radiograph = decode.decode(data, max_pixels=max_pixels)
        described = {f.name: getattr(radiograph, f.name) for f in fields(radiograph) if f.name != "pixels"}
        return {**described, "shape": radiograph.pixels.shape}, radiograph
    except Rejected as no:
        detail = no.detail[:DETAIL_CHARS]
        return {"code": no.code, "detail": detail, "value": no.value, "threshold": no.threshold}, None
    except MemoryError:
        detail = "decoding takes more memory than it may have"
        return {"code": "decoder_memory", "detail": detail, "threshold": float(memory_bytes)}, None
    except Exception as error:
        detail = f"the decoder broke on this file: {type(error).__name__}"
        return {"code": "decoder_crashed", "detail": detail}, None


if __name__ == "__main__":
    status, memory, max_pixels, memory_bytes = (int(argument) for argument in sys.argv[1:5])
    serve(status, memory, max_pixels, memory_bytes, float(sys.argv[5]))
