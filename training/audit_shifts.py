"""Do the answers follow the file rather than the film? Test films coded, sized, lit and cropped otherwise."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import binomtest
from tqdm import tqdm

from shared.bundles import Bundle
from shared.errors import Rejected
from training.audit_look import classify, together
from training.index import Item
from worker.pipeline.analyze import prepare as serve
from worker.pipeline.predictor import Predictor

CHUNK = 16

Change = Callable[[Image.Image], bytes]


def shifts(bundle: Bundle, predictor: Predictor, items: list[Item], root: Path, *, films: int) -> dict[str, Any]:
    """`films` test films drawn from a seed, each changed in every way of CHANGES: how often the answer is another one.

    The two films of a pair show the same chest. `changed` is the share of pairs, both answered, whose top class
    differs, `moved` the mean distance of their probabilities (total variation), `refused` the share that the gate
    refuses only when changed.
    """
    test = [item for item in items if item.split == "test" and item.label in bundle.manifest.classes]
    drawn = [test[i] for i in np.random.default_rng(1).permutation(len(test))[:films]]
    pictures = [_open(root / item.image) for item in drawn]
    before = _answers(bundle, predictor, pictures, png)
    found = {
        name: _compared(before, _answers(bundle, predictor, pictures, change), drawn, bundle.manifest.classes)
        for name, change in tqdm(CHANGES.items(), "shifts", mininterval=10)
    }
    return {"films": len(drawn), "answered": sum(p is not None for p in before), "changes": found}


def png(image: Image.Image) -> bytes:
    """The image unchanged, without loss."""
    return _coded(image, "PNG")


def jpeg(image: Image.Image) -> bytes:
    """Compressed to JPEG quality 50: blocks and lost detail."""
    return _coded(image, "JPEG", quality=50)


def half(image: Image.Image) -> bytes:
    """Half as wide and high."""
    return png(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS))


def toned(gamma: float) -> Change:
    """Another exposure: gray values to a power; below 1 it is brighter."""
    return lambda image: png(_mapped(image, lambda v: v**gamma))


def flattened(image: Image.Image) -> bytes:
    """A third less contrast around the middle gray."""
    return png(_mapped(image, lambda v: 0.5 + (v - 0.5) * 2 / 3))


def cropped(image: Image.Image) -> bytes:
    """Four per cent cut off at every side."""
    x, y = round(0.04 * image.width), round(0.04 * image.height)
    return png(image.crop((x, y, image.width - x, image.height - y)))


def framed(image: Image.Image) -> bytes:
    """A black frame of six per cent of the longer side."""
    edge = round(0.06 * max(image.size))
    frame = Image.new("L", (image.width + 2 * edge, image.height + 2 * edge), 0)
    frame.paste(image, (edge, edge))
    return png(frame)


CHANGES: dict[str, Change] = {
    "jpeg_quality_50": jpeg,
    "half_size": half,
    "brighter": toned(0.8),
    "darker": toned(1.25),
    "less_contrast": flattened,
    "cropped_4_percent": cropped,
    "black_frame_6_percent": framed,
}


def _answers(bundle: Bundle, predictor: Predictor, pictures: list[Image.Image], change: Change) -> list[Any]:
    """Probabilities float64 [K] of each changed picture, None where the gate refuses it."""
    found: list[Any] = [None] * len(pictures)
    for i in range(0, len(pictures), CHUNK):
        made = [(j, _tensor(bundle, predictor, change(p))) for j, p in enumerate(pictures[i : i + CHUNK], start=i)]
        passed = [(j, tensor) for j, tensor in made if tensor is not None]
        if passed:
            said = classify(bundle, predictor, np.stack([tensor for _, tensor in passed]))
            for (j, _), code, p in zip(passed, said.codes, together(said.logits, bundle), strict=True):
                found[j] = None if code else p
    return found


def _tensor(bundle: Bundle, predictor: Predictor, data: bytes) -> np.ndarray | None:
    try:
        return serve(data, predictor, bundle).tensor
    except Rejected:
        return None


def _compared(before: list[Any], after: list[Any], films: list[Item], classes: list[str]) -> dict[str, Any]:
    both = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a is not None and b is not None]
    answered = sum(p is not None for p in before)
    if not both:
        return {"pairs": 0, "refused": float(answered > 0)}
    a, b = np.array([before[i] for i in both]), np.array([after[i] for i in both])
    labels = np.array([classes.index(films[i].label) for i in both])
    one, other = a.argmax(axis=1), b.argmax(axis=1)
    turned = Counter(f"{classes[x]} -> {classes[y]}" for x, y in zip(one, other, strict=True) if x != y)
    return {
        "pairs": len(both),
        "refused": (answered - len(both)) / answered,
        "changed": float((one != other).mean()),
        "changed_interval": _exact(int((one != other).sum()), len(both)),
        "moved": float(np.abs(a - b).sum(axis=1).mean() / 2),
        "accuracy_before": float((one == labels).mean()),
        "accuracy_after": float((other == labels).mean()),
        "turned": dict(turned.most_common()),
    }


def _exact(count: int, of: int) -> list[float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934)."""
    found = binomtest(count, of).proportion_ci()
    return [float(found.low), float(found.high)]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def _mapped(image: Image.Image, change: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Gray values through a curve on 0..1."""
    values = np.clip(change(np.arange(256) / 255.0), 0, 1)
    return image.point(np.rint(255 * values).astype(int).tolist())


def _coded(image: Image.Image, name: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name, **options)
    return buffer.getvalue()
