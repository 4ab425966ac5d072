"""Augmentation of tensor batches float32 [N, 1, S, S]; the background of masked lungs stays zero."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def augmented(images: torch.Tensor, how: dict[str, Any], side: int, clip: float) -> torch.Tensor:
    """A training batch in -clip..clip changed in every way that `how` names, then a square of `side` pixels of it."""
    images = affine(images, rotation_deg=how["rotation_deg"], scale=how["scale"], shift=how["shift"], flip=how["flip"])
    images = crop(images, side)
    images = resolution(images, share=how["blur_share"], lowest=how["blur_lowest"])
    images = jpeg(images, share=how["jpeg_share"], worst=how["jpeg_worst"], clip=clip)
    images = border(images, share=how["border_share"], largest=how["border_largest"])
    images = intensity(images, contrast=how["contrast"], brightness=how["brightness"], noise=how["noise"])
    return erase(images, share=how["erase_share"], largest=how["erase_largest"]).clamp(-clip, clip)


def affine(images: torch.Tensor, *, rotation_deg: float, scale: float, shift: float, flip: bool) -> torch.Tensor:
    """Each image rotated, scaled by 1 +- scale, shifted by +- shift of its side and flipped at random; zero padded."""
    n = images.shape[0]
    angle = _uniform(n) * math.radians(rotation_deg)
    zoom = 1 + _uniform(n) * scale
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    theta = torch.zeros(n, 2, 3)  # drawn on the CPU: a seed gives the same batches on every device
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * zoom * mirror, -angle.sin() * zoom
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * zoom * mirror, angle.cos() * zoom
    theta[:, :, 2] = _uniform(n, 2) * 2 * shift
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def crop(images: torch.Tensor, side: int) -> torch.Tensor:
    """One random square of `side` pixels of the batch: structures at their full size for part of the cost."""
    room = images.shape[-1] - side
    if room <= 0:
        return images
    y, x = (int(v) for v in torch.randint(0, room + 1, (2,)))
    return images[..., y : y + side, x : x + side]


def intensity(images: torch.Tensor, *, contrast: float, brightness: float, noise: float) -> torch.Tensor:
    """Contrast, brightness and noise changed inside the lungs (where the tensor is not zero)."""
    n = images.shape[0]
    inside = images != 0
    factor = (1 + _uniform(n) * contrast)[:, None, None, None].to(images.device)
    offset = (_uniform(n) * brightness)[:, None, None, None].to(images.device)
    level = (torch.rand(n) * noise)[:, None, None, None].to(images.device)
    changed = images * factor + offset + torch.randn_like(images) * level
    return torch.where(inside, changed, images)


def resolution(images: torch.Tensor, *, share: float, lowest: float) -> torch.Tensor:
    """A share of the images goes down to `lowest`..1 of its size and up again: blur and compression tell no source."""
    chosen = torch.rand(images.shape[0]) < share
    if not chosen.any():
        return images
    size = images.shape[-1]
    small = max(8, round(size * float(torch.empty(1).uniform_(lowest, 1.0))))
    part = F.interpolate(images[chosen], size=small, mode="area")
    out = images.clone()
    out[chosen] = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
    return out


def jpeg(images: torch.Tensor, *, share: float, worst: int, clip: float) -> torch.Tensor:
    """A share of the images goes through JPEG at a quality of `worst`..95: its blocks tell no source either."""
    out = images.clone()
    for i in torch.nonzero(torch.rand(images.shape[0]) < share).flatten().tolist():
        gray = ((images[i, 0] / clip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(gray.cpu().numpy()).save(buffer, "JPEG", quality=int(torch.randint(worst, 96, (1,))))
        back = torch.from_numpy(np.asarray(Image.open(buffer)).astype(np.float32)).to(images.device)
        out[i, 0] = torch.where(images[i, 0] != 0, (back / 127.5 - 1) * clip, 0.0)
    return out


def border(images: torch.Tensor, *, share: float, largest: float) -> torch.Tensor:
    """A share of the images loses up to `largest` of the side all around the lungs: no outline is exact."""
    chosen = torch.rand(images.shape[0]) < share
    reach = int(torch.randint(0, max(round(largest * images.shape[-1]), 1) + 1, (1,)))
    if not chosen.any() or not reach:
        return images
    empty = (images[chosen] == 0).float()
    outside = 1 - F.max_pool2d(1 - empty, 5, stride=1, padding=2)  # single zeros inside the lungs are gray values
    eaten = F.max_pool2d(outside, 2 * (reach + 2) + 1, stride=1, padding=reach + 2)
    out = images.clone()
    out[chosen] = torch.where(eaten > 0, 0.0, images[chosen])
    return out


def erase(images: torch.Tensor, *, share: float, largest: float) -> torch.Tensor:
    """A share of the images loses one rectangle of up to `largest` of the side (random erasing, Zhong 2020)."""
    out = images.clone()
    size = images.shape[-1]
    for i in torch.nonzero(torch.rand(images.shape[0]) < share).flatten().tolist():
        h, w = (int(v) for v in torch.randint(size // 10, max(int(size * largest), size // 10 + 1), (2,)))
        y, x = int(torch.randint(0, size - h, (1,))), int(torch.randint(0, size - w, (1,)))
        out[i, :, y : y + h, x : x + w] = 0
    return out


def mixup(images: torch.Tensor, targets: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of images and of targets float32 [N, K] blended by one Beta(alpha, alpha) weight per batch (Zhang 2018)."""
    if alpha <= 0:
        return images, targets
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(images.shape[0])
    return weight * images + (1 - weight) * images[other], weight * targets + (1 - weight) * targets[other]


def _uniform(*shape: int) -> torch.Tensor:
    return torch.empty(*shape).uniform_(-1, 1)
