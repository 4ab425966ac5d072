"""Films that are in a data set more than once: exact copies, recompressed, windowed, resized, squashed or cropped ones.

The public collections of COVID-19 films copy from each other, and mostly not byte by byte: one crops the caption away,
the next squashes the rest to a square. A difference hash finds copies of the whole picture only; here a copy may also
show a part of the other film (`VIEWS`). Candidates are the closest pairs under a whitened description of thumbnails,
equalised because a window changes gray values, not their order. Whitening is what tells films apart at all: under a
plain correlation any two children of one hospital are as alike as two copies (Jegou and Chum, ECCV 2012). A candidate
is confirmed by laying one film on the other (Lucas and Kanade 1981; shift and stretch) and comparing the fine detail,
ribs and vessels, that two people never share.

imagededup and imagehash were weighed: hashes of whole pictures again, and the first wants a network and its own torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

SIDE = 64
LIKENESS = 0.87  # of fine detail: copies are above; two films of one patient reach 0.83, once 0.86
COMPONENTS = 64
CANDIDATES = 4  # pairs to look at, per image of the data set
FEW = 32  # images: too few to learn what films have in common, and all their pairs are few
SURE = 0.9  # a description this close is looked at whatever their number
FLOOR = 0.65
PROMISING = 0.6  # likeness at half the size that is worth the whole
DETAIL = 9  # structure wider than this part of a film is posture and exposure, not detail
CONTRAST = 0.03  # of detail, in shares of white: that of ribs and vessels
OVERLAP = 0.4  # the share of a film that the other must cover
MARGINS = (4, 9, 14)  # pixels of the thumbnail that a copy may have cut off
CHUNK = 256


@dataclass(frozen=True)
class Pair:
    """Two images, by their place in the list, and how alike their fine detail is once aligned, at most 1."""

    first: int
    second: int
    likeness: float


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """`pixels` float32 [H, W] in 0..1 squashed to uint8 [64, 64]; many copies are squashed: proportions say little."""
    small = Image.fromarray(np.ascontiguousarray(pixels, np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.rint(np.clip(np.asarray(small), 0, 1) * 255).astype(np.uint8)


def find(thumbnails: np.ndarray) -> list[Pair]:
    """The pairs of near-duplicates among thumbnails uint8 [N, 64, 64], first < second, in this order.

    Ten thousand images take about a minute of one core.
    """
    if len(thumbnails) < 2:
        return []
    images = torch.from_numpy(_equalised(thumbnails))
    first, second, start = _candidates(images)
    if len(images) <= FEW:
        every = torch.triu_indices(len(images), len(images), 1)
        first, second = torch.cat([first, every[0]]), torch.cat([second, every[1]])
        start = torch.cat([start, torch.eye(3).repeat(every.shape[1], 1, 1)])
    found: dict[tuple[int, int], float] = {}
    for i in range(0, len(first), CHUNK):
        a, b = first[i : i + CHUNK], second[i : i + CHUNK]
        likeness = _likeness(images[a], images[b], start[i : i + CHUNK])
        for one, other, value in zip(a.tolist(), b.tolist(), likeness.tolist(), strict=True):
            key = (min(one, other), max(one, other))
            found[key] = max(value, found.get(key, -1.0))
    return [Pair(*key, round(value, 3)) for key, value in sorted(found.items()) if value >= LIKENESS]


def _equalised(thumbnails: np.ndarray) -> np.ndarray:
    """Half the gray values, half their ranks, float32 [N, 64, 64]: ranks alone would blow up a black border's noise."""
    out = np.empty(thumbnails.shape, np.float32)
    values = np.arange(256, dtype=np.float32) / 255
    for image, into in zip(thumbnails, out, strict=True):
        counts = np.bincount(image.ravel(), minlength=256)
        ranks = (np.cumsum(counts) - counts / 2) / image.size
        into[:] = ((ranks + values) / 2).astype(np.float32)[image]
    return out


def _views() -> list[tuple[int, int, int, int]]:
    """What part of the other film a copy may show: left, top, right, bottom in pixels of the thumbnail."""
    whole = (0, SIDE)
    views = [(whole, whole)]
    for margin in MARGINS:
        sides = [(at, SIDE - margin + at) for at in (0, margin // 2, margin)]
        views += [*product(sides, sides), *product(sides, [whole]), *product([whole], sides)]
    return [(left, top, right, bottom) for (left, right), (top, bottom) in views]


def _candidates(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs worth a closer look: the first shows about that view of the second; [M], [M] and maps [M, 3, 3]."""
    basis, mean = _whitening(_unit(images))
    whole = _described(images, (0, 0, SIDE, SIDE), basis, mean)
    pairs, scores, boxes = [], [], []
    for box in _views():
        part = _described(images, box, basis, mean)
        for pair, score in _close(whole, part):
            pairs.append(pair)
            scores.append(score)
            boxes.append(torch.tensor([box], dtype=torch.float32).expand(len(score), 4))
    pair, score, view = torch.cat(pairs), torch.cat(scores), torch.cat(boxes)
    order = torch.argsort(score, descending=True, stable=True)
    key = (pair.amin(1) * len(images) + pair.amax(1))[order].numpy()
    chosen = order[np.sort(np.unique(key, return_index=True)[1])]  # the best view of each pair, best pairs first
    keep = max(CANDIDATES * len(images), int((score[chosen] >= SURE).sum()))
    chosen = chosen[:keep]
    return pair[chosen, 0], pair[chosen, 1], _affine(view[chosen])


def _close(whole: torch.Tensor, part: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of descriptions [N, D] above the floor, and how close each is."""
    for i in range(0, len(whole), CHUNK):
        close = whole[i : i + CHUNK] @ part.T
        close[torch.arange(len(close)), torch.arange(i, i + len(close))] = -1
        pair = torch.nonzero(close >= FLOOR)
        yield pair + torch.tensor([i, 0]), close[pair[:, 0], pair[:, 1]]


def _unit(images: torch.Tensor) -> torch.Tensor:
    """Images [N, S, S] as vectors of zero mean and unit length at half the size, float32 [N, 1024]."""
    flat = F.interpolate(images[:, None], (SIDE // 2, SIDE // 2), mode="bilinear", antialias=True).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def _whitening(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The principal components of vectors [N, D], each divided by its spread, and their mean."""
    mean = vectors.mean(0)
    centred = (vectors - mean).double()
    values, axes = torch.linalg.eigh(centred.T @ centred / len(vectors))
    count = max(1, min(COMPONENTS, len(vectors) // 4))  # more would blow up what little two copies differ in
    values, axes = values[-count:], axes[:, -count:]
    return (axes / torch.sqrt(values.clamp(min=float(values[-1]) * 1e-4 + 1e-12))).float(), mean


def _described(images: torch.Tensor, box: tuple[int, ...], basis: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """A view of every image as unit vectors float32 [N, COMPONENTS]."""
    left, top, right, bottom = box
    chunks = (images[i : i + 1024, top:bottom, left:right] for i in range(0, len(images), 1024))
    return torch.cat([F.normalize((_unit(chunk) - mean) @ basis, dim=1) for chunk in chunks])


def _affine(box: torch.Tensor) -> torch.Tensor:
    """Views [M, 4] as maps [M, 3, 3] of the square -1..1 onto that part of it."""
    left, top, right, bottom = (box / SIDE).unbind(1)
    maps = torch.eye(3).repeat(len(box), 1, 1)
    maps[:, 0, 0], maps[:, 1, 1] = right - left, bottom - top
    maps[:, 0, 2], maps[:, 1, 2] = left + right - 1, top + bottom - 1
    return maps


def _likeness(fixed: torch.Tensor, moving: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Correlation of the fine detail of images [M, S, S] once `moving` lies on `fixed`; -1 for little overlap."""
    small = [F.avg_pool2d(x[:, None], 2)[:, 0] for x in (fixed, moving)]
    likeness, maps = _aligned(small[0], small[1], start, 8)
    worth = torch.nonzero(likeness >= PROMISING)[:, 0]
    likeness = torch.full_like(likeness, -1.0)
    if len(worth):
        likeness[worth], _ = _aligned(fixed[worth], moving[worth], maps[worth], 5)
    return likeness


def _aligned(
    fixed: torch.Tensor, moving: torch.Tensor, maps: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeness after so many steps from `maps`, and the maps [M, 3, 3] they led to."""
    for _ in range(steps):
        maps = maps @ _step(fixed, moving, maps)
    moved, inside = _warped(moving, maps)
    covered = inside.mean((1, 2))
    inside = -F.max_pool2d(-inside[:, None], 3, 1, 1)[:, 0]  # off the rim, where the warped film was padded
    alike = (_normal(_detail(fixed), inside)[0] * _normal(_detail(moved), inside)[0]).sum((1, 2))
    return torch.where(covered >= OVERLAP, alike, -1.0), maps


def _step(fixed: torch.Tensor, moving: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """One Gauss-Newton step towards alignment as a map [M, 3, 3] close to the identity; bounded, for bad candidates."""
    moved, inside = _warped(moving, maps)
    a, (b, length) = _normal(fixed, inside)[0], _normal(moved, inside)
    size = fixed.shape[-1]
    down, right = torch.gradient(moved, dim=(1, 2))
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    slopes = [s * inside * (size / 2) / length for s in (right, down)]
    columns = [slopes[0] * axis, slopes[0], slopes[1] * axis[:, None], slopes[1]]
    jacobian = torch.stack(columns, -1).flatten(1, 2)
    normal = jacobian.mT @ jacobian + 1e-3 * torch.eye(4)
    delta = torch.linalg.solve(normal, jacobian.mT @ (a - b).flatten(1)[..., None])[..., 0].clamp(-0.05, 0.05)
    step = torch.eye(3).repeat(len(fixed), 1, 1)
    step[:, [0, 0, 1, 1], [0, 2, 1, 2]] += delta
    return step


def _warped(images: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [M, S, S] seen through maps [M, 3, 3], and where that is inside them (1) or not (0)."""
    grid = F.affine_grid(maps[:, :2], [len(images), 1, *images.shape[1:]], align_corners=False)
    moved = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return moved, (grid.abs() <= 1).all(-1).float()


def _normal(images: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero mean and unit length inside, zero outside; and the length before."""
    mean = (images * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (images - mean) * inside
    length = centred.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None, None]
    return centred / length, length


def _detail(images: torch.Tensor) -> torch.Tensor:
    """What is left of images [M, S, S] when their surroundings' mean is taken away.

    It is clipped: else the sharp edge of a black border would be all that counts, and two equal frames would be copies.
    """
    width = images.shape[-1] // DETAIL | 1
    rest = images - F.avg_pool2d(images[:, None], width, 1, width // 2, count_include_pad=False)[:, 0]
    return rest.clamp(-CONTRAST, CONTRAST)
