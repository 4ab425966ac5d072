"""Train the view network: is it a chest film, upright, of the right polarity, from the front, whole; resumable."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from shared.bundles import ViewNetwork, checksum
from training import view_batches
from training.checkpoints import Checkpoint, resume, store
from training.index import Item
from training.view_batches import Batch
from worker.pipeline.view import OUTPUTS
from worker.runtimes import networks

NAME = "view"


def train(items: list[Item], root: Path, config_path: Path, out: Path, *, others: Path | None = None) -> Path:
    """Train on the train split until the configured epochs are done and return the weights, `out`/view.safetensors.

    `others`/lateral/FILE are films from the side, every other `others`/KIND/FILE is a picture that is no chest film.
    Without them the network learns from the index and from drawings alone, and knows no films from the side.
    """
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    torch.manual_seed(config["seed"])
    pool = view_batches.pool([i for i in items if i.split == "train"], root, others, config)
    _tell(pool, out / "view.json")
    stop = view_batches.pool([i for i in items if i.split == "stop"], root, None, config)
    model = networks.View(config["widths"], config["input_size"], len(OUTPUTS))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs omit it
    optimizer = torch.optim.AdamW(model.parameters(), config["learning_rate"], weight_decay=config["weight_decay"])
    total = config["epochs"] * config["steps"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config["learning_rate"], total_steps=total)
    state = Checkpoint({"model": model, "optimizer": optimizer, "schedule": schedule})
    for epoch in range(resume(state, out / "view.ckpt"), config["epochs"]):
        loss = _epoch(state.parts, pool, config, f"view {epoch + 1}/{config['epochs']}")
        right = shares_right(model, view_batches.draw(stop, config, 512))
        print(f"view epoch {epoch + 1}: loss {loss:.4f}, stop fold {right}", flush=True)
        networks.save(model, out / "view.safetensors")
        store(state, out / "view.ckpt", epoch + 1)
    return out / "view.safetensors"


def story(config_path: Path, weights: Path) -> dict[str, Any]:
    """By which configuration, and from how many films, films from the side and strangers these weights were trained."""
    pictures = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    return {"config": tomllib.loads(config_path.read_text(encoding="utf-8")), "pictures": pictures}


def view_network(config_path: Path, weights: Path) -> ViewNetwork:
    """The manifest's entry for trained view weights."""
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    named = {"widths": config["widths"], "input_size": config["input_size"]}
    return ViewNetwork(file=weights.name, sha256=checksum(weights), **named)


def loss_of(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropies of the outputs float32 [N, 8]; what is no film has no turn, polarity, side or end."""
    each = F.binary_cross_entropy_with_logits(logits[:, 0], batch.film)
    how = torch.stack([batch.inverted, batch.lateral, batch.cropped], dim=1)
    loss = F.binary_cross_entropy_with_logits(logits[:, 1:-4], how, reduction="none").sum(dim=1)
    loss = loss + F.cross_entropy(logits[:, -4:], batch.turn, reduction="none")
    return each + (loss * batch.film).sum() / batch.film.sum().clamp(min=1)


def shares_right(model: torch.nn.Module, batch: Batch) -> dict[str, float]:
    """How often each output is right on a batch; of films only, but for the first."""
    model.eval()
    with torch.inference_mode():
        said = model(batch.images)
    film = batch.film > 0
    found = {
        "film": ((said[:, 0] > 0) == film),
        "inverted": ((said[:, 1] > 0) == (batch.inverted > 0))[film],
        "lateral": ((said[:, 2] > 0) == (batch.lateral > 0))[film],
        "cropped": ((said[:, 3] > 0) == (batch.cropped > 0))[film],
        "turn": (said[:, -4:].argmax(dim=1) == batch.turn)[film],
    }
    return {name: round(float(hits.float().mean()), 4) for name, hits in found.items()}


def _tell(pool: view_batches.Pool, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {name: len(pictures) for name, pictures in vars(pool).items()}
    path.write_text(json.dumps(counts), encoding="utf-8")


def _epoch(parts: dict[str, Any], pool: view_batches.Pool, config: dict[str, Any], title: str) -> float:
    parts["model"].train()
    total = 0.0
    for _ in tqdm(range(config["steps"]), title, mininterval=10):
        batch = view_batches.draw(pool, config, config["batch_size"])
        with torch.autocast("cpu", torch.bfloat16):
            logits = parts["model"](batch.images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), batch)
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        parts["schedule"].step()
        total += float(loss.detach())
    return total / config["steps"]
