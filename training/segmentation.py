"""How well the lungs are found: Dice by the masks' convention, the region of the heart shown apart."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from shared.bundles import Bundle
from training import chance, metrics
from training.index import Item
from worker.pipeline import decode, lungs
from worker.pipeline.predictor import Predictor

APEX = 0.3  # share of the lungs' height, from the top, that lies above the heart and the hila
GOOD = 0.9  # Dice below which a mask is counted as poor


def figures(bundle: Bundle, predictor: Predictor, items: list[Item], root: Path) -> dict[str, Any]:
    """The Dice of the lung mask at the image's own size over all `items`, which have a mask, and by convention."""
    scores: dict[str, list[tuple[str, dict[str, float]]]] = defaultdict(list)
    for item in tqdm(items, "lungs", mininterval=10):
        found = _scores(bundle, predictor, item, root)
        for kind in ("all", item.mask_kind):
            scores[kind].append((item.group or item.id, found))
    return {kind: summary(several) for kind, several in scores.items()}


def compare(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Dice of two masks bool [H, W]: whole, in the region of the heart, elsewhere; and how much of it each covers."""
    region = heart(true)
    return {
        "dice": metrics.dice(found, true),
        "heart": metrics.dice(found & region, true & region),
        "elsewhere": metrics.dice(found & ~region, true & ~region),
        "true_cover": float(true[region].mean()) if region.any() else np.nan,
        "found_cover": float(found[region].mean()) if region.any() else np.nan,
    }


def heart(mask: np.ndarray) -> np.ndarray:
    """The region bool [H, W] in which masks that include the lung behind the heart differ from those that do not.

    It lies between the two lungs' centres of mass, and below the upper 30 % of their height: the middle half of the
    thorax, which a heart of normal size (cardiothoracic ratio up to 0.5) fits into. A box is enough, because only
    what one of the masks covers counts in it. Empty where the mask is.
    """
    region = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        middle = (columns[0] + columns[-1] + 1) // 2
        counts, places = mask.sum(axis=0), np.arange(mask.shape[1])
        left, right = counts * (places < middle), counts * (places >= middle)
        top = rows[0] + round(APEX * (rows[-1] + 1 - rows[0]))
        first, last = (round((side @ places) / max(side.sum(), 1)) for side in (left, right))
        region[top : rows[-1] + 1, first : last + 1] = True
    return region


def summary(scores: list[tuple[str, dict[str, float]]]) -> dict[str, Any]:
    """What `compare` said of several images, each with the group of its patient."""
    weights = chance.resamples([group for group, _ in scores])
    each = {name: np.array([found[name] for _, found in scores]) for name in scores[0][1]}
    dice = each["dice"]
    low, median, high = np.percentile(dice, (5, 50, 95))
    return {
        "images": len(dice),
        "dice": float(dice.mean()),
        "interval": chance.interval(chance.means(dice, weights)),
        "median": float(median),
        "p05": float(low),
        "p95": float(high),
        "lowest": float(dice.min()),
        f"below_{GOOD}": float((dice < GOOD).mean()),
        "heart": {
            "dice": float(each["heart"].mean()),
            "interval": chance.interval(chance.means(each["heart"], weights)),
            "true_cover": float(np.nanmean(each["true_cover"])),
            "found_cover": float(np.nanmean(each["found_cover"])),
        },
        "elsewhere": {
            "dice": float(each["elsewhere"].mean()),
            "interval": chance.interval(chance.means(each["elsewhere"], weights)),
        },
    }


def _scores(bundle: Bundle, predictor: Predictor, item: Item, root: Path) -> dict[str, float]:
    pixels = decode.decode((root / item.image).read_bytes()).pixels
    true = decode.decode((root / item.mask).read_bytes()).pixels > 0.5
    found = lungs.find(pixels, predictor, bundle.manifest.lungs, bundle.manifest.preprocessing)
    return compare(found.mask, _fitted(true, found.mask.shape))


def _fitted(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask bool [H, W] at the film's `shape`: the COVID-19 Radiography Database keeps them smaller than its films."""
    if mask.shape == shape:
        return mask
    return np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))
