"""Checkpoints from which a training goes on as if nothing had happened."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Checkpoint:
    """What one training carries on: `parts` have a state_dict, `best` is the best score so far."""

    parts: dict[str, Any]
    best: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


def store(state: Checkpoint, path: Path, done: int) -> None:
    """Write everything needed to go on after `done` finished rounds, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(
        {
            "parts": {name: value.state_dict() for name, value in state.parts.items()},
            "best": state.best,
            "numbers": state.numbers,
            "done": done,
            "rng": torch.get_rng_state(),
        },
        part,
    )
    os.replace(part, path)


def resume(state: Checkpoint, path: Path) -> int:
    """Load a checkpoint where there is one; returns how many rounds are done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, value in state.parts.items():
        value.load_state_dict(saved["parts"][name])
    state.best, state.numbers = saved["best"], saved["numbers"]
    torch.set_rng_state(saved["rng"])
    return saved["done"]
