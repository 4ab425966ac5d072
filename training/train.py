"""Train one classifier: growing image sizes, balanced draws, averaged weights; resumable, and able to end by the clock.

Progress runs from 0 to 1. Without a time limit it is the share of the configured work that is done; with one, the share
of the minutes that are gone, whichever is further. The learning rate and the image size follow progress, so a training
that is cut short still ends with small steps at the serving size.
"""

from __future__ import annotations

import csv
import math
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from training import augment, scoring
from training.checkpoints import resume, store
from training.index import Item
from training.run import Run, begin
from worker.runtimes import networks

LOG_FIELDS = ("round", "progress", "size", "images", "minutes", "learning_rate", "loss", "stop_f1")


def train(
    items: list[Item],
    prepared: Path,
    config_path: Path,
    classes: list[str],
    out: Path,
    *,
    minutes: float = 0.0,
    leave_out: str = "",
) -> Path:
    """Train until the work or the minutes are spent; returns the best weights, `out`/<name>.safetensors.

    Images of the source `leave_out` are neither trained on nor scored.
    """
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    if config["teacher"]:
        taught_by = tomllib.loads(config_path.with_name(f"{config['teacher']}.toml").read_text(encoding="utf-8"))
        config["teacher_architecture"] = taught_by["architecture"]
    run = begin(items, prepared, config, classes, out, minutes=minutes, leave_out=leave_out)
    name = config["name"]
    done = resume(run.state, out / f"{name}.ckpt")
    run.ticked = time.perf_counter()
    sized: dict[int, torch.Tensor] = {}
    while run.progress < 1:
        size = run.phase["size"]
        if size not in sized:
            sized = {size: run.fit.at(size)}
        last = run.last_phase
        until = (int(run.progress * config["rounds"] + 1e-6) + 1) / config["rounds"]
        row = _round(run, sized[size], until, f"{name} {done + 1} {size} px")
        done += 1
        score = scoring.score(run, last)
        run.tick()
        _keep(run, score, last, out / f"{name}.safetensors")
        _log(out / f"{name}.csv", {"round": done, "size": size, **row, "stop_f1": round(score, 4)})
        store(run.state, out / f"{name}.ckpt", done)
    return out / f"{name}.safetensors"


def use_threads(count: int) -> None:
    """Keep this process to `count` cores: two processes that share them would slow each other down fivefold."""
    torch.set_num_threads(count)


def _round(run: Run, images: torch.Tensor, until: float, title: str) -> dict[str, Any]:
    """Train until progress reaches `until` or the phase changes; what the log says about it."""
    run.ready()
    phase = run.phase
    batch, side = phase["batch_size"], phase.get("crop", phase["size"])
    loss_sum, steps = 0.0, 0
    began = time.perf_counter()
    with tqdm(desc=title, unit="image", mininterval=30) as bar:
        while True:
            chosen = torch.multinomial(run.draw, batch, replacement=True)
            loss_sum += _step(run, run.images(images[chosen]), run.fit.labels[chosen].to(run.device), side)
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
    images = augment.augmented(images, config["augment"], side, config["clip"])
    targets = _taught(run, images, targets)
    images, targets = augment.mixup(images, targets, config["mixup_alpha"])
    with run.autocast():
        logits = run.model(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), targets, weight=run.cost)
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), config["clip_gradient"])
    run.optimizer.step()
    _follow(run.average, run.model, min(config["ema"], 1 - 1 / (run.state.numbers["steps"] + 1)))
    return float(loss.detach())


def _taught(run: Run, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Targets [N, K] blended with what the teacher says of the very same augmented images (Hinton 2015, Beyer 2022)."""
    if run.teacher is None:
        return targets
    with torch.no_grad(), run.autocast():
        said = run.teacher(images.contiguous(memory_format=torch.channels_last))
    return targets.lerp(said.float().softmax(dim=1), run.config["teacher_share"])


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


def _keep(run: Run, score: float, last: bool, path: Path) -> None:
    """The newest weights until the serving size is reached, from then on the best by the stop fold."""
    if last and score < run.state.best:
        run.state.numbers["stale"] += 1
        return
    if last:
        run.state.best = score
        run.state.numbers["stale"] = 0.0
    networks.save(run.average, path)


def _log(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{key} {row[key]}" for key in LOG_FIELDS), flush=True)
