"""Train one classifier: growing image sizes, balanced draws, averaged weights; resumable, and able to end by the clock.

Progress runs from 0 to 1. Without a time limit it is the share of the configured work that is done; with one, the share
of the minutes that are gone, whichever is further. The learning rate and the image size follow progress, so a training
that is cut short still ends with small steps at the serving size.
"""

from __future__ import annotations

import copy
import csv
import math
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from shared.errors import Misconfigured
from training import augment, data
from training.checkpoints import Checkpoint, resume, store
from training.index import Item
from training.metrics import macro_f1
from worker.runtimes import networks

LOG_FIELDS = ("round", "progress", "size", "images", "minutes", "learning_rate", "loss", "stop_f1")


@dataclass
class Run:
    """One training: its data, its networks and how far it has come; `average` holds the averaged weights."""

    config: dict[str, Any]
    fit: data.Part
    stop: data.Part
    weights: torch.Tensor
    model: networks.Classifier
    average: networks.Classifier
    optimizer: torch.optim.Optimizer
    minutes: float
    state: Checkpoint
    ticked: float = 0.0

    @property
    def progress(self) -> float:
        """How far the training has come, 0..1."""
        done = self.state.numbers["work"] / (self.config["work"] * len(self.fit.items))
        gone = self.state.numbers["seconds"] / (60 * self.minutes) if self.minutes else 0.0
        return min(max(done, gone), 1.0)

    def tick(self) -> None:
        """Count the time since the last tick as spent: scoring costs minutes too."""
        now = time.perf_counter()
        self.state.numbers["seconds"] += now - self.ticked
        self.ticked = now

    @property
    def phase(self) -> dict[str, Any]:
        """The image size and batch size of this moment."""
        phases = self.config["phases"]
        return next((phase for phase in phases if self.progress < phase["until"]), phases[-1])

    @property
    def last_phase(self) -> bool:
        """Whether the images have reached the serving size."""
        return self.phase is self.config["phases"][-1]


def train(
    items: list[Item], prepared: Path, config_path: Path, classes: list[str], out: Path, *, minutes: float = 0.0
) -> Path:
    """Train until the work or the minutes are spent; returns the best weights, `out`/<name>.safetensors."""
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    run = _begin(items, prepared, config, classes, minutes)
    name = config["name"]
    done = resume(run.state, out / f"{name}.ckpt")
    run.ticked = time.perf_counter()
    sized: dict[int, torch.Tensor] = {}
    while run.progress < 1:
        size = run.phase["size"]
        if size not in sized:
            sized = {size: run.fit.at(size)}
        last = run.last_phase
        row = _round(run, sized[size], (done + 1) / config["rounds"], f"{name} {done + 1} {size} px")
        done += 1
        score = _score(run, last)
        run.tick()
        _keep(run, score, last, out / f"{name}.safetensors")
        _log(out / f"{name}.csv", {"round": done, "size": size, **row, "stop_f1": round(score, 4)})
        store(run.state, out / f"{name}.ckpt", done)
    return out / f"{name}.safetensors"


def use_threads(count: int) -> None:
    """Keep this process to `count` cores: two processes that share them would slow each other down fivefold."""
    torch.set_num_threads(count)


def _begin(items: list[Item], prepared: Path, config: dict[str, Any], classes: list[str], minutes: float) -> Run:
    torch.manual_seed(config["seed"])
    fit = data.part(items, prepared, classes, "train", config["clip"])
    stop = data.part(items, prepared, classes, "stop", config["clip"])
    if set(fit.labels.tolist()) != set(range(len(classes))) or not len(stop.items):
        raise Misconfigured("a class has no training image, or the stop fold is empty")
    model = networks.classifier(
        config["architecture"], len(classes), dropout=config["dropout"], imagenet=config["imagenet"]
    )
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs omit it
    optimizer = torch.optim.AdamW(_groups(model, config["weight_decay"]), lr=config["learning_rate"], betas=(0.9, 0.99))
    average = copy.deepcopy(model)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    state = Checkpoint(parts, 0.0, {"work": 0.0, "seconds": 0.0, "steps": 0.0})
    weights = data.balanced(fit.items, config["source_power"])
    return Run(config, fit, stop, weights, model, average, optimizer, minutes, state)


def _round(run: Run, images: torch.Tensor, until: float, title: str) -> dict[str, Any]:
    """Train until progress reaches `until` or the phase changes; what the log says about it."""
    run.model.train()
    phase = run.phase
    batch, side = phase["batch_size"], phase.get("crop", phase["size"])
    loss_sum, steps = 0.0, 0
    began = time.perf_counter()
    with tqdm(desc=title, unit="image", mininterval=30) as bar:
        while True:
            chosen = torch.multinomial(run.weights, batch, replacement=True)
            loss_sum += _step(run, data.floats(images[chosen], run.fit.clip), run.fit.labels[chosen], side)
            steps += 1
            run.state.numbers["steps"] += 1
            run.state.numbers["work"] += batch * (side / run.config["phases"][-1]["size"]) ** 2
            run.tick()
            bar.update(batch)
            if run.progress >= min(until, 1.0) or run.phase is not phase:
                break
    return {
        "progress": round(run.progress, 4),
        "images": steps * batch,
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "learning_rate": f"{run.optimizer.param_groups[0]['lr']:.2e}",
        "loss": round(loss_sum / steps, 4),
    }


def _step(run: Run, images: torch.Tensor, labels: torch.Tensor, side: int) -> float:
    """One step on `side` pixels of float32 [N, 1, S, S] and on int64 [N]; the loss."""
    config = run.config
    for group in run.optimizer.param_groups:
        group["lr"] = config["learning_rate"] * _rate(run.progress, config["warmup"])
    smooth = config["label_smoothing"]
    targets = F.one_hot(labels, run.model.head.out_features).float() * (1 - smooth)
    targets += smooth / run.model.head.out_features
    images, targets = augment.mixup(_augmented(images, config, side), targets, config["mixup_alpha"])
    with torch.autocast("cpu", torch.bfloat16, enabled=config["bf16"]):
        logits = run.model(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), targets)
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), config["clip_gradient"])
    run.optimizer.step()
    _follow(run.average, run.model, min(config["ema"], 1 - 1 / (run.state.numbers["steps"] + 1)))
    return float(loss.detach())


def _augmented(images: torch.Tensor, config: dict[str, Any], side: int) -> torch.Tensor:
    how, clip = config["augment"], config["clip"]
    images = augment.affine(
        images, rotation_deg=how["rotation_deg"], scale=how["scale"], shift=how["shift"], flip=how["flip"]
    )
    images = augment.crop(images, side)
    images = augment.resolution(images, share=how["blur_share"], lowest=how["blur_lowest"])
    images = augment.intensity(images, contrast=how["contrast"], brightness=how["brightness"], noise=how["noise"])
    return augment.erase(images, share=how["erase_share"], largest=how["erase_largest"]).clamp(-clip, clip)


def _rate(progress: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine down to a hundredth."""
    if progress < warmup:
        return 0.04 + 0.96 * progress / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """The exponential mean of weights and running statistics (Polyak averaging)."""
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def _score(run: Run, last: bool) -> float:
    """Macro-F1 of the averaged weights on the stop fold, at the serving size once training has reached it."""
    size = run.config["phases"][-1]["size"] if last else run.config["stop_size"]
    if last:
        recalibrate(run, size)
    said = predict(run.average, run.stop.at(size), run.stop.clip, run.config["bf16"])
    return macro_f1(run.stop.labels.numpy(), said.argmax(dim=1).numpy(), run.model.head.out_features)


def predict(model: torch.nn.Module, tensors: torch.Tensor, clip: float, bf16: bool) -> torch.Tensor:
    """Logits float32 [N, K] of int8 [N, S, S]."""
    model.eval()
    said = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for i in range(0, len(tensors), 32):
            batch = data.floats(tensors[i : i + 32], clip).contiguous(memory_format=torch.channels_last)
            said.append(model(batch).float())
    return torch.cat(said)


def recalibrate(run: Run, size: int) -> None:
    """The running statistics of the averaged weights, measured at `size` on images as training draws and augments them.

    Averaged weights have none of their own, and squares of an image have others than the image.
    """
    norms = [m for m in run.average.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    run.average.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    chosen = torch.multinomial(run.weights, run.config["recalibration_images"], replacement=True)
    tensors = data.Part(run.fit.items, run.fit.tensors[chosen.numpy()], run.fit.labels, run.fit.clip).at(size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=run.config["bf16"]):
        for i in range(0, len(tensors) - 1, 32):
            images = _augmented(data.floats(tensors[i : i + 32], run.fit.clip), run.config, size)
            run.average(images.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    run.average.eval()


def _keep(run: Run, score: float, last: bool, path: Path) -> None:
    """The newest weights until the serving size is reached, from then on the best by the stop fold."""
    if last and score < run.state.best:
        return
    if last:
        run.state.best = score
    networks.save(run.average, path)


def _groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and normalisation do not."""
    some = [p for p in model.parameters() if p.ndim > 1]
    none = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": some, "weight_decay": decay}, {"params": none, "weight_decay": 0.0}]


def _log(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{key} {row[key]}" for key in LOG_FIELDS), flush=True)
