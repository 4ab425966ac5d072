"""Train the lungs network on the masks of the index; resumable, best epoch by the stop fold's Dice."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from training import augment, index
from training.checkpoints import Checkpoint, resume, store
from training.index import Item
from worker.pipeline import decode, lungs
from worker.runtimes import networks


def train(items: list[Item], root: Path, config_path: Path, out: Path, *, without_fold: int | None = None) -> Path:
    """Train until the configured epochs are done and return the best weights, `out`/lungs.safetensors.

    `without_fold` leaves one fold of the training masks out: the network for `prepare` to find the lungs of that fold.
    """
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    torch.manual_seed(config["seed"])
    chosen = [i for i in items if i.mask and i.split == "train" and index.fold(i) != without_fold]
    fit = _tensors(chosen, root, config["input_size"])
    stop = _tensors([i for i in items if i.mask and i.split == "stop"], root, config["input_size"])
    model = networks.UNet(config["widths"])
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs omit it
    steps = -(-len(fit[0]) // config["batch_size"])
    optimizer = torch.optim.AdamW(model.parameters(), config["learning_rate"], weight_decay=config["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config["learning_rate"], total_steps=steps * config["epochs"], pct_start=0.2
    )
    state = Checkpoint({"model": model, "optimizer": optimizer, "schedule": schedule})
    for epoch in range(resume(state, out / "lungs.ckpt"), config["epochs"]):
        loss = _epoch(state.parts, fit, config, f"lungs {epoch + 1}/{config['epochs']}")
        score = dice_of(model, *stop)
        print(f"lungs epoch {epoch + 1}: loss {loss:.4f}, stop-fold Dice {score:.4f}", flush=True)
        if score >= state.best:
            state.best = score
            networks.save(model, out / "lungs.safetensors")
        store(state, out / "lungs.ckpt", epoch + 1)
    return out / "lungs.safetensors"


def dice_of(model: torch.nn.Module, images: torch.Tensor, masks: torch.Tensor) -> float:
    """Mean Dice at the network's own size over images float16 [N, S, S] and masks bool [N, S, S]."""
    model.eval()
    scores = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(images), 64):
            said = model(images[i : i + 64, None].float())[:, 0] > 0
            true = masks[i : i + 64]
            both = (said & true).sum(dim=(1, 2))
            scores.append(2 * both / (said.sum(dim=(1, 2)) + true.sum(dim=(1, 2))).clamp(min=1))
    return float(torch.cat(scores).mean())


def _epoch(parts: dict[str, Any], data: tuple[torch.Tensor, torch.Tensor], config: dict[str, Any], title: str) -> float:
    parts["model"].train()
    images, masks = data
    total, size = 0.0, config["batch_size"]
    order = torch.randperm(len(images))
    for i in tqdm(range(0, len(order), size), title, mininterval=10):
        chosen = order[i : i + size]
        x, y = _augmented(images[chosen, None].float(), masks[chosen, None].float(), config["augment"])
        with torch.autocast("cpu", torch.bfloat16):
            logits = parts["model"](x.contiguous(memory_format=torch.channels_last))
        loss = _loss(logits.float(), y)
        parts["optimizer"].zero_grad()
        loss.backward()
        parts["optimizer"].step()
        parts["schedule"].step()
        total += float(loss.detach()) * len(chosen)
    return total / len(order)


def _augmented(x: torch.Tensor, y: torch.Tensor, how: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and mask moved together (as two channels), then the image's intensities changed."""
    moved = augment.affine(
        torch.cat([x + 2, y], dim=1),  # black padding is -2 once the shift is taken back
        rotation_deg=how["rotation_deg"], scale=how["scale"], shift=how["shift"], flip=how["flip"],
    )  # fmt: skip
    image = (moved[:, :1] - 2).clamp(min=-1.5)
    image = augment.intensity(image, contrast=how["contrast"], brightness=how["brightness"], noise=how["noise"])
    return image, (moved[:, 1:] >= 0.5).float()


def _loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy plus soft Dice (Milletari 2016), means over the batch."""
    probability = torch.sigmoid(logits)
    both = (probability * target).sum(dim=(1, 2, 3))
    dice = 1 - (2 * both + 1) / (probability.sum(dim=(1, 2, 3)) + target.sum(dim=(1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice.mean()


def _tensors(items: list[Item], root: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The worker's own segmentation tensors float16 [N, S, S] and the masks on the same grid, bool [N, S, S]."""
    images = np.empty((len(items), size, size), np.float16)
    masks = np.empty((len(items), size, size), bool)
    for i, item in enumerate(tqdm(items, "reading masks", mininterval=10)):
        pixels = decode.decode((root / item.image).read_bytes()).pixels
        mask = decode.decode((root / item.mask).read_bytes()).pixels
        images[i] = lungs.segmentation_tensor(pixels, size)
        masks[i] = lungs.resize(lungs.square_of((mask > 0.5).astype(np.float32)), size) >= 0.5
    return torch.from_numpy(images), torch.from_numpy(masks)
