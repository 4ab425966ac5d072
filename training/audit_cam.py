"""Where the class maps lie: their share inside the lungs, against the lungs' share of what the networks see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.bundles import Bundle
from training.audit_look import MASK, Looks, together
from worker.pipeline import explain, lungs


def cam(looks: Looks, bundle: Bundle) -> dict[str, Any]:
    """Lifts of the class that the ensemble says, for each network and the ensemble, over all films and by that class.

    The heat is the product's own: the class map without its negative part (`explain.fuse`), brought from 7 x 7 to the
    crop of the lungs. Its share inside the found lungs over their share of the crop is the lift: 1 is heat spread
    evenly, `ceiling` the mean lift of heat that lies inside alone. `shuffled_lift` is the same heat over the lungs of
    other films: lungs fill the middle of every crop, so only what is above it follows the film at hand.
    """
    said = together(looks.logits, bundle).argmax(axis=1)
    names = [network.name for network in bundle.manifest.networks]
    votes = bundle.manifest.calibration.votes
    heats = {"ensemble": _heats(looks.maps, said, list(range(len(names))), votes)}
    heats |= {name: _heats(looks.maps, said, [m]) for m, name in enumerate(names)}
    area = looks.masks.mean(axis=(1, 2))
    return {
        "lungs_area_share": float(area.mean()),
        "ceiling": float((1 / np.maximum(area, 1e-6)).mean()),
        "of": {name: _lifts(heat, looks.masks, said, bundle.manifest.classes) for name, heat in heats.items()},
    }


def share_inside(heats: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of each heat map float32 [N, S, S] >= 0 that lies inside `masks` [N, S, S]; nan where there is none."""
    total = heats.sum(axis=(1, 2), dtype=np.float64)
    inside = (heats * masks).sum(axis=(1, 2), dtype=np.float64)
    return np.divide(inside, total, out=np.full(len(heats), np.nan), where=total > 0)


def _heats(maps: np.ndarray, said: np.ndarray, networks: list[int], votes: Sequence[float] = ()) -> np.ndarray:
    fused = [explain.fuse(film[networks], int(k), votes) for film, k in zip(maps, said, strict=True)]
    return np.stack([np.maximum(lungs.resize(heat, MASK), 0) for heat in fused])


def _lifts(heats: np.ndarray, masks: np.ndarray, said: np.ndarray, classes: list[str]) -> dict[str, Any]:
    area = np.maximum(masks.mean(axis=(1, 2)), 1e-6)
    share = share_inside(heats, masks)
    others = np.roll(np.arange(len(masks)), len(masks) // 2)
    shuffled = share_inside(heats, masks[others]) / area[others]
    flat = heats.reshape(len(heats), -1).argmax(axis=1)
    peaks = masks.reshape(len(masks), -1)[np.arange(len(masks)), flat] >= 0.5
    groups = {"all": np.ones(len(said), dtype=bool)} | {name: said == k for k, name in enumerate(classes)}
    return {
        name: _summary(share[here], (share / area)[here], shuffled[here], peaks[here])
        for name, here in groups.items()
        if here.any()
    }


def _summary(share: np.ndarray, lift: np.ndarray, shuffled: np.ndarray, peaks: np.ndarray) -> dict[str, Any]:
    hot = np.isfinite(lift)
    if not hot.any():
        return {"images": len(lift), "without_heat": len(lift)}
    low, middle, high = np.percentile(lift[hot], (25, 50, 75))
    return {
        "images": len(lift),
        "without_heat": int((~hot).sum()),
        "share_inside": float(share[hot].mean()),
        "lift": float(lift[hot].mean()),
        "quartiles": [float(low), float(middle), float(high)],
        "shuffled_lift": float(shuffled[np.isfinite(shuffled)].mean()),
        "peak_inside": float(peaks[hot].mean()),
    }
