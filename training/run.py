"""One training and how far it has come: its data, its networks, its optimiser."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared.errors import Misconfigured
from training import data, starts
from training.checkpoints import Checkpoint
from training.index import Item
from worker.runtimes import networks


@dataclass
class Run:
    """One training: its data, its networks and how far it has come; `average` holds the averaged weights.

    `draw` float64 [N] are the chances of the training images, `cost` float32 [K] the classes' weights in the loss.
    """

    config: dict[str, Any]
    fit: data.Part
    stop: data.Part
    draw: torch.Tensor
    cost: torch.Tensor
    model: networks.Classifier
    average: networks.Classifier
    optimizer: torch.optim.Optimizer
    minutes: float
    state: Checkpoint
    device: torch.device
    teacher: networks.Classifier | None = None
    ticked: float = 0.0

    @property
    def progress(self) -> float:
        """How far the training has come, 0..1."""
        done = self.state.numbers["work"] / (self.config["work"] * len(self.fit.items))
        gone = self.state.numbers["seconds"] / (60 * self.minutes) if self.minutes else 0.0
        tired = self.last_phase_of(max(done, gone)) and self.state.numbers["stale"] >= self.config["patience"]
        return 1.0 if tired else min(max(done, gone), 1.0)

    def tick(self) -> None:
        """Count the time since the last tick as spent: scoring costs minutes too."""
        now = time.perf_counter()
        self.state.numbers["seconds"] += now - self.ticked
        self.ticked = now

    @property
    def phase(self) -> dict[str, Any]:
        """The image size and batch size of this moment."""
        return self._phase(self.progress)

    @property
    def last_phase(self) -> bool:
        """Whether the images have reached the serving size."""
        return self.last_phase_of(self.progress)

    def last_phase_of(self, progress: float) -> bool:
        """Whether the images have reached the serving size at `progress`."""
        return self._phase(progress) is self.config["phases"][-1]

    def _phase(self, progress: float) -> dict[str, Any]:
        phases = self.config["phases"]
        return next((phase for phase in phases if progress < phase["until"]), phases[-1])

    def images(self, tensors: torch.Tensor) -> torch.Tensor:
        """Int8 [N, S, S] as the networks' input float32 [N, 1, S, S] on the device of the training."""
        return data.floats(tensors.to(self.device), self.fit.clip)

    def autocast(self) -> torch.autocast:
        """Bfloat16 where the configuration asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config["bf16"])

    def ready(self) -> None:
        """Training mode; frozen blocks keep their batch statistics as they keep their weights."""
        self.model.train()
        for block in _frozen(self.model, self.config["frozen"]):
            block.eval()


def begin(
    items: list[Item],
    prepared: Path,
    config: dict[str, Any],
    classes: list[str],
    out: Path,
    *,
    minutes: float = 0.0,
    leave_out: str = "",
) -> Run:
    """A training before its first step; `leave_out` names a source that it must not see."""
    torch.manual_seed(config["seed"])
    fit = data.part(items, prepared, classes, "train", config["clip"], leave_out)
    stop = data.part(items, prepared, classes, "stop", config["clip"], leave_out)
    if set(fit.labels.tolist()) != set(range(len(classes))) or not len(stop.items):
        raise Misconfigured("a class has no training image, or the stop fold is empty")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = starts.begin(config, len(classes)).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs omit it
    for block in _frozen(model, config["frozen"]):
        block.requires_grad_(False)
    average = copy.deepcopy(model)
    optimizer = _optimizer(model, config)
    state = Checkpoint({"model": model, "average": average, "optimizer": optimizer}, 0.0, {})
    state.numbers = {"work": 0.0, "seconds": 0.0, "steps": 0.0, "stale": 0.0}
    draw, cost = _balance(fit, config, len(classes))
    teacher = _teacher(config, len(classes), out.parent, device)
    return Run(config, fit, stop, draw, cost.to(device), model, average, optimizer, minutes, state, device, teacher)


def _teacher(config: dict[str, Any], classes: int, runs: Path, device: torch.device) -> networks.Classifier | None:
    """The network that was trained before this one, whose answers this one learns beside the labels; None without."""
    name = config["teacher"]
    if not name:
        return None
    teacher = starts.finished(runs / name / f"{name}.safetensors", config["teacher_architecture"], classes).to(device)
    return teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs omit it


def _balance(fit: data.Part, config: dict[str, Any], classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The chances of the images and the weights of the classes: the imbalance is met by one of them, or by none."""
    even, ones = torch.ones(len(fit.items), dtype=torch.float64), torch.ones(classes)
    if config["balance"] == "sampler":
        return data.balanced(fit.items, config["source_power"]), ones
    if config["balance"] == "loss":
        counts = torch.bincount(fit.labels, minlength=classes).float()
        return even, counts.sum() / (classes * counts)
    if config["balance"] == "none":
        return even, ones
    raise Misconfigured(f"balance is sampler, loss or none, not {config['balance']!r}")


def _optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.Optimizer:
    """Adam or AdamW; weights decay, biases and normalisation do not."""
    free = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": config["weight_decay"]},
        {"params": [p for p in free if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if config["optimizer"] not in kinds:
        raise Misconfigured(f"optimizer is adam or adamw, not {config['optimizer']!r}")
    return kinds[config["optimizer"]](groups, lr=config["learning_rate"], betas=(0.9, 0.99))


def _frozen(model: networks.Classifier, count: int | str) -> list[nn.Module]:
    """The first `count` blocks of the backbone, or all of it: what keeps its start's weights."""
    blocks = list(model.backbone.children())
    if len(blocks) == 2:  # DenseNet: its features are one child, the last activation the other
        blocks = [*blocks[0].children(), blocks[1]]
    return blocks if count == "all" else blocks[: int(count)]
