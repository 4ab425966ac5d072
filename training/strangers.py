"""Images that are no chest films, or none shown properly: what a bundle says about them, kind by kind."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from shared.bundles import Bundle
from shared.errors import Rejected
from training import drawn, index, view_batches
from training.answers import Answer
from worker.pipeline.analyze import analyze
from worker.pipeline.predictor import Predictor

EACH = 12  # pictures of each drawn kind
SAMPLE = 100  # films that are also shown wrongly
TUNED, HELD_OUT = "tuned", "held out"  # kinds that the gate was tuned on, and kinds that only figures are made of
SEED = 1  # another than that of training


def fates(
    bundle: Bundle, predictor: Predictor, asked: list[Answer], root: Path, others: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What comes back for pictures that are no chest films, for films shown wrongly, and for other diseases, by kind.

    Each kind's name begins with its group: `tuned/`, `held out/`, `films/` of `asked`, the answers to the test films of
    `root`, shown wrongly, and `others/` for every `others`/KIND/FILE, shown as it is.
    """
    groups = _pictures() | _spoilt(bundle, asked, root) | _others(others)
    found = {
        name: fate(said(bundle, predictor, data) for data in tqdm(pictures, name, mininterval=10, leave=False))
        for name, pictures in groups.items()
    }
    diseases = [_code(a) for a in asked if a.item.label == index.OTHER]
    return found | ({"films/other disease": fate(diseases)} if diseases else {})


def said(bundle: Bundle, predictor: Predictor, data: bytes) -> str:
    """The code of the refusal of a file's bytes, or `uncertain` or `sure` where it is answered."""
    try:
        analysis = analyze(data, predictor, bundle).analysis
    except Rejected as error:
        return error.code
    return "uncertain" if analysis.uncertain else "sure"


def fate(codes: Iterable[str]) -> dict[str, Any]:
    """How many images were shown and refused, and how often each answer was given."""
    counts = Counter(codes)
    refused = counts.total() - counts["uncertain"] - counts["sure"]
    return {"images": counts.total(), "refused": refused, "answers": dict(counts.most_common())}


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def left_half(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] that ends at the spine."""
    return pixels[:, : pixels.shape[1] // 2].copy()


def upper_half(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] that ends at the hila."""
    return pixels[: pixels.shape[0] // 2].copy()


def unexposed(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] that too little reached."""
    return (pixels * 0.06).astype(np.uint8)


def burnt(pixels: np.ndarray) -> np.ndarray:
    """A film uint8 [H, W] that too much reached: three quarters of it white."""
    return np.clip((pixels - np.percentile(pixels, 5)) * 8, 0, 255).astype(np.uint8)


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda pixels: 255 - pixels,
    "turned 90": lambda pixels: np.rot90(pixels).copy(),
    "turned 180": lambda pixels: np.rot90(pixels, 2).copy(),
    "turned 270": lambda pixels: np.rot90(pixels, 3).copy(),
    "left half": left_half,
    "upper half": upper_half,
    "unexposed": unexposed,
    "burnt": burnt,
}


def _pictures() -> dict[str, Iterable[bytes]]:
    found: dict[str, Iterable[bytes]] = {}
    for group, kinds in ((TUNED, drawn.TUNED), (HELD_OUT, drawn.HELD_OUT)):
        for name, pictures in drawn.pictures(kinds, EACH, SEED).items():
            found[f"{group}/{name}"] = [png(picture) for picture in pictures]
    cuttings = [np.rint(cutting * 255).astype(np.uint8) for cutting in view_batches.cuttings(EACH, SEED)]
    return found | {f"{TUNED}/photographs": [png(cutting) for cutting in cuttings]}


def _spoilt(bundle: Bundle, asked: list[Answer], root: Path) -> dict[str, Iterable[bytes]]:
    """Films that were answered, each shown in every wrong way."""
    films = [a.item for a in asked if a.analysis and a.item.label in bundle.manifest.classes]
    films = films[:: max(len(films) // SAMPLE, 1)]
    pixels = [np.asarray(Image.open(root / item.image).convert("L")) for item in films]
    return {f"films/{name}": _each(pixels, spoil) for name, spoil in SPOILT.items()}


def _each(pixels: list[np.ndarray], spoil: Callable[[np.ndarray], np.ndarray]) -> Iterator[bytes]:
    return (png(spoil(film)) for film in pixels)


def _others(folder: Path | None) -> dict[str, Iterable[bytes]]:
    """The files of each subfolder, read when they are asked for."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    return {f"others/{kind.name}": _read(sorted(kind.iterdir())) for kind in kinds}


def _read(files: list[Path]) -> Iterator[bytes]:
    return (file.read_bytes() for file in files if file.is_file())


def _code(answer: Answer) -> str:
    if answer.analysis is None:
        return answer.refused
    return "uncertain" if answer.analysis.uncertain else "sure"
