"""One pass of a stored bundle over the test films: everything that the audit asks of its networks, kept in files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.bundles import Bundle
from shared.errors import BundleError, Rejected
from training import audit_parts, prepare
from training.index import Item
from worker.pipeline import lungs, quality
from worker.pipeline.analyze import GRID, Prepared
from worker.pipeline.analyze import prepare as serve
from worker.pipeline.ensemble import mean, softmax, tempered
from worker.pipeline.predictor import Outputs, Predictor

BATCH = 8  # tensors per call: what a CPU runtime is fastest with
FILMS_PER_FILE = 120  # how much an interruption costs
MASK = 8 * GRID  # side of the kept lung masks: cells of an eighth of a class map's
TYPICAL = 1500  # training films whose mean is the typical lung

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Looks:
    """What the networks said about the answered test films of known class.

    `labels` int64 [N]; `logits` float32 [N, M, K]; `maps` float16 [N, M, K, 7, 7], class maps before any ReLU;
    `features` one float32 [N, D] per network; `masks` float32 [N, 56, 56], the share of each cell of the lungs' crop
    that is lung; `sampled` int64 [n], the films that were also shown in parts; `parts` float32 [n, M, K] and `strange`
    bool [n] by name, the answers and whether the gate would refuse them for their features; `nothing` float32 [M, K],
    the answer to an empty tensor; `refused` counts the gate's codes.
    """

    items: list[Item]
    labels: np.ndarray
    logits: np.ndarray
    maps: np.ndarray
    features: list[np.ndarray]
    masks: np.ndarray
    sampled: np.ndarray
    parts: Arrays
    strange: Arrays
    nothing: np.ndarray
    refused: dict[str, int]


@dataclass(frozen=True)
class Said:
    """What M networks say about N tensors: `logits` [N, M, K], `maps` [N, M, K, h, w], `features` one [N, D] each.

    `codes` [N] are those of the gate's refusals for strange features, empty where it lets the tensor pass.
    """

    logits: np.ndarray
    maps: np.ndarray
    features: list[np.ndarray]
    codes: list[str]


def look(
    bundle: Bundle, predictor: Predictor, items: list[Item], root: Path, prepared: Path, out: Path, *, parts: int
) -> Looks:
    """Show every test film of known class to the bundle, and `parts` of them, drawn from a seed, in parts too.

    Goes on where it stopped: what lies in `out` must be of this bundle, runtime and index.
    """
    out.mkdir(parents=True, exist_ok=True)
    test = [item for item in items if item.split == "test" and item.label in bundle.manifest.classes]
    drawn = set(np.random.default_rng(0).permutation(len(test))[:parts].tolist())
    typical = audit_parts.typical_lungs(_some(items, prepared), bundle.manifest.preprocessing.clip)
    for begin in tqdm(range(0, len(test), FILMS_PER_FILE), "films", mininterval=10):
        path = out / f"films-{begin:05}.npz"
        if not path.is_file():
            rows = list(range(begin, min(begin + FILMS_PER_FILE, len(test))))
            _save(path, _seen(bundle, predictor, [test[i] for i in rows], rows, root, typical, drawn))
    path, size = out / "nothing.npz", bundle.manifest.preprocessing.input_size
    if not path.is_file():
        _save(path, {"logits": classify(bundle, predictor, np.zeros((1, size, size), dtype=np.float32)).logits[0]})
    files = [_load(path) for path in sorted(out.glob("films-*.npz"))]
    return _joined(test, files, _load(path)["logits"], bundle.manifest.classes)


def classify(bundle: Bundle, predictor: Predictor, tensors: np.ndarray) -> Said:
    """What the networks say about tensors float32 [N, S, S], and what the gate says about their features."""
    said = [predictor.classify(tensors[i : i + BATCH, None]) for i in range(0, len(tensors), BATCH)]
    return Said(
        np.concatenate([x.logits for x in said], axis=1).swapaxes(0, 1),
        np.concatenate([x.maps for x in said], axis=1).swapaxes(0, 1),
        [np.concatenate(f) for f in zip(*(x.features for x in said), strict=True)],
        [code for x in said for code in _strange(bundle, x)],
    )


def together(logits: np.ndarray, bundle: Bundle) -> np.ndarray:
    """The ensemble's calibrated probabilities float64 [N, K] of logits float32 [N, M, K]."""
    decided = bundle.manifest.calibration
    return tempered(mean(softmax(logits), decided.votes), decided.temperature)


def _seen(
    bundle: Bundle,
    predictor: Predictor,
    films: list[Item],
    rows: list[int],
    root: Path,
    typical: np.ndarray,
    drawn: set[int],
) -> Arrays:
    """What one file keeps of `films`, whose places in the test split are `rows`."""
    served = [_serve(bundle, predictor, root / item.image) for item in films]
    codes = np.array([film for film in served if isinstance(film, str)], dtype="U40")
    passed = [(row, film) for row, film in zip(rows, served, strict=True) if isinstance(film, Prepared)]
    if not passed:
        return {"codes": codes}
    said = classify(bundle, predictor, np.stack([film.tensor for _, film in passed]))
    good = [i for i, code in enumerate(said.codes) if not code]
    kept = [passed[i] for i in good]
    found = {
        "codes": np.append(codes, [code for code in said.codes if code]),
        "rows": np.array([row for row, _ in kept], dtype=np.int64),
        "logits": said.logits[good],
        "maps": _grids(said.maps[good]).astype(np.float16),
        "masks": np.array([audit_parts.lungs_in_crop(film, MASK) for _, film in kept], dtype=np.float16),
        "sampled": np.array([row for row, _ in kept if row in drawn], dtype=np.int64),
    } | {f"features-{m}": f[good] for m, f in enumerate(said.features)}
    shown = [audit_parts.parts(f, typical, bundle.manifest.preprocessing) for row, f in kept if row in drawn]
    for name in audit_parts.PARTS if shown else ():
        of_part = classify(bundle, predictor, np.stack([each[name] for each in shown]))
        found |= {f"part-{name}": of_part.logits, f"strange-{name}": np.array([bool(c) for c in of_part.codes])}
    return found


def _strange(bundle: Bundle, said: Outputs) -> list[str]:
    """The code of the gate's refusal of each answered tensor, empty where there is none."""
    count = said.logits.shape[1]
    return [""] * count if said.ood_scores is None else [_refusal(bundle, float(score)) for score in said.ood_scores]


def _refusal(bundle: Bundle, ood_score: float) -> str:
    try:
        quality.check({"ood_score": ood_score}, bundle.manifest.quality)
    except Rejected as error:
        return error.code
    return ""


def _serve(bundle: Bundle, predictor: Predictor, path: Path) -> Prepared | str:
    """A film as serving prepares it, or the code of its refusal."""
    try:
        return serve(path.read_bytes(), predictor, bundle)
    except Rejected as error:
        return error.code


def _joined(test: list[Item], files: list[Arrays], nothing: np.ndarray, classes: list[str]) -> Looks:
    answered = [file for file in files if len(file.get("rows", ()))]
    if not answered:
        raise BundleError("the bundle refused every test film")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([file[name] for file in answered if name in file])

    rows = joined("rows")
    place = {row: i for i, row in enumerate(rows.tolist())}
    items = [test[row] for row in rows]
    count = sum(name.startswith("features-") for name in answered[0])
    return Looks(
        items=items,
        labels=np.array([classes.index(item.label) for item in items]),
        logits=joined("logits"),
        maps=joined("maps"),
        features=[joined(f"features-{m}") for m in range(count)],
        masks=joined("masks").astype(np.float32),
        sampled=np.array([place[row] for row in joined("sampled").tolist()], dtype=np.int64),
        parts={name: joined(f"part-{name}") for name in audit_parts.PARTS},
        strange={name: joined(f"strange-{name}") for name in audit_parts.PARTS},
        nothing=nothing,
        refused=dict(Counter(str(code) for file in files for code in file["codes"])),
    )


def _grids(maps: np.ndarray) -> np.ndarray:
    """Class maps [N, M, K, h, w] at 7 x 7, as the diagnosis stores them."""
    if maps.shape[-2:] == (GRID, GRID):
        return maps
    flat = [lungs.resize(grid, GRID) for grid in maps.reshape(-1, *maps.shape[-2:])]
    return np.stack(flat).reshape(*maps.shape[:-2], GRID, GRID)


def _some(items: list[Item], prepared: Path) -> np.ndarray:
    """Prepared tensors int8 [N, S, S] of training films, evenly spaced over the index."""
    good = [not row.refused for row in prepare.read_rows(prepared)]
    rows = [i for i, item in enumerate(items) if item.split == "train" and good[i]]
    tensors = np.load(prepared / "tensors.npy", mmap_mode="r")
    return tensors[rows[:: max(len(rows) // TYPICAL, 1)]]


def _save(path: Path, arrays: Arrays) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
