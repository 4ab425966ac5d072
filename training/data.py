"""The prepared tensors as batches: balanced draws for training, plain order for scoring."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from training import prepare
from training.index import Item


@dataclass(frozen=True)
class Part:
    """One split: `tensors` int8 [N, S, S] at the prepared size, `labels` int64 [N] in the order of the classes."""

    items: list[Item]
    tensors: np.ndarray
    labels: torch.Tensor
    clip: float

    def at(self, size: int) -> torch.Tensor:
        """The tensors as int8 [N, size, size]; area means, so that no detail folds back as a pattern."""
        if size == self.tensors.shape[-1]:
            return torch.from_numpy(np.ascontiguousarray(self.tensors))
        chunks = [_shrunk(self.tensors[i : i + 256], size) for i in range(0, len(self.tensors), 256)]
        return torch.cat(chunks)


def part(items: list[Item], out: Path, classes: list[str], split: str, clip: float, leave_out: str = "") -> Part:
    """The images of one split that have a class and were not refused; none of the source `leave_out`."""
    tensors = np.load(out / "tensors.npy", mmap_mode="r")
    refused = [bool(row.refused) for row in prepare.read_rows(out)]
    wanted = [x.split == split and x.label in classes and x.source != leave_out for x in items]
    chosen = [i for i, want in enumerate(wanted) if want and not refused[i]]
    labels = torch.tensor([classes.index(items[i].label) for i in chosen])
    return Part([items[i] for i in chosen], tensors[chosen], labels, clip)


def floats(tensors: torch.Tensor, clip: float) -> torch.Tensor:
    """Int8 [N, S, S] as the networks' input float32 [N, 1, S, S] in -clip..clip."""
    return tensors[:, None].float() * (clip / 127)


def balanced(items: list[Item], power: float) -> torch.Tensor:
    """Weights float64 [N] of a draw: every class alike, and within a class every source by its count ** power.

    Class and source are confounded in public data. With power 1 the largest source is its class; with 0 every source
    counts alike and the few images of a small one are seen again and again.
    """
    cells = Counter((item.label, item.source) for item in items)
    totals: Counter[str] = Counter()
    for (label, _), count in cells.items():
        totals[label] += count**power
    weights = [cells[i.label, i.source] ** power / totals[i.label] / cells[i.label, i.source] for i in items]
    return torch.tensor(weights, dtype=torch.float64)


def _shrunk(tensors: np.ndarray, size: int) -> torch.Tensor:
    batch = torch.from_numpy(np.ascontiguousarray(tensors))[:, None].float()
    return F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)[:, 0].round().to(torch.int8)
