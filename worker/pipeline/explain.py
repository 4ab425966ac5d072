"""Grad-CAM from the class maps that the diagnosis left: nothing is inferred again.

With a linear head over global average pooling, Grad-CAM (Selvaraju 2017) at the last feature map is the class map of
Zhou 2016 without its negative part, so no backward pass is needed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.errors import BundleError
from worker.pipeline import lungs


@dataclass(frozen=True)
class Cams:
    """Class maps float16 [M, K, h, w] of M networks and K classes on `box` (left, top, right, bottom) of an image."""

    maps: np.ndarray
    classes: list[str]
    networks: list[str]
    box: tuple[int, int, int, int]
    votes: list[float] = field(default_factory=list)  # each network's share; none where all count alike

    def to_bytes(self) -> bytes:
        """A NumPy archive without pickled objects."""
        buffer = io.BytesIO()
        maps = self.maps.astype(np.float16)
        np.savez(buffer, maps=maps, classes=self.classes, networks=self.networks, box=self.box, votes=self.votes)
        return buffer.getvalue()


def read_cams(data: bytes) -> Cams:
    """The archive that `Cams.to_bytes` wrote; ValueError when it is another."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            left, top, right, bottom = (int(edge) for edge in archive["box"])
            cams = Cams(
                maps=archive["maps"],
                classes=[str(name) for name in archive["classes"]],
                networks=[str(name) for name in archive["networks"]],
                box=(left, top, right, bottom),
                votes=[float(share) for share in archive["votes"]] if "votes" in archive else [],
            )
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError("no archive of class maps") from error
    if cams.maps.ndim != 4 or cams.maps.shape[:2] != (len(cams.networks), len(cams.classes)):
        raise ValueError(f"class maps of shape {cams.maps.shape}")
    if cams.votes and len(cams.votes) != len(cams.networks):
        raise ValueError(f"class maps of {len(cams.networks)} networks with {len(cams.votes)} votes")
    return cams


def fuse(maps: np.ndarray, class_index: int, votes: Sequence[float] = ()) -> np.ndarray:
    """One heat map float32 [h, w] in 0..1 of class maps [M, K, h, w]: each network's own, scaled to 1, then averaged.

    `votes` [M] are the shares of the networks, equal by default. All zero where no network sees evidence for the
    class. BundleError where the maps hold values that are no numbers.
    """
    of_class = maps[:, class_index].astype(np.float32)
    if not np.isfinite(of_class).all():
        raise BundleError("class maps that are no numbers")
    positive = np.maximum(of_class, 0.0)
    highest = positive.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(positive, highest, out=np.zeros_like(positive), where=highest > 0)
    mean = np.average(scaled, axis=0, weights=votes or None).astype(np.float32)
    return mean / mean.max() if mean.max() > 0 else mean


def heat_on_image(heat: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """A heat map [h, w] on the lungs' box, as float32 [H, W] in 0..1 on the whole image of `shape`."""
    return np.clip(lungs.uncrop(heat, box, shape), 0.0, 1.0)


def describe(heat: np.ndarray, mask: np.ndarray) -> dict[str, float | list[int] | None]:
    """Where the heat float32 [H, W] lies: its peak as x, y in pixels, and its share inside the lungs bool [H, W].

    `lungs_lift` is that share over the lungs' share of the area: 1 is what heat spread evenly would have. All are None
    where there is no heat.
    """
    total = float(heat.sum(dtype=np.float64))
    if total <= 0:
        return {"peak": None, "lungs_share": None, "lungs_lift": None}
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    share = float(heat[mask].sum(dtype=np.float64)) / total
    lift = share / float(mask.mean()) if mask.any() else None
    return {"peak": [int(x), int(y)], "lungs_share": round(share, 4), "lungs_lift": round(lift, 3) if lift else lift}
