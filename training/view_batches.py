"""Batches for the view network: films turned and inverted, films from the side, and pictures that are no films."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F
from tqdm import tqdm

from training import drawn
from training.index import Item
from worker.pipeline import decode, lungs

LATERAL = "lateral"  # the folder of films from the side among the pictures that a user gives


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 [N, S, S] in their squares, 0 outside the picture: frontal films, lateral ones, and others."""

    films: torch.Tensor
    laterals: torch.Tensor
    strangers: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs float32 [N, 1, s, s] as serving makes them, and what they are.

    `film`, `inverted`, `lateral` and `cropped` are float32 [N], `turn` is int64 [N].
    """

    images: torch.Tensor
    film: torch.Tensor
    inverted: torch.Tensor
    lateral: torch.Tensor
    cropped: torch.Tensor
    turn: torch.Tensor


def pool(items: list[Item], root: Path, others: Path | None, config: dict[str, Any]) -> Pool:
    """The pictures to draw from: every film of `items`, drawn strangers, and each `others`/KIND/FILE."""
    size = config["stored_size"]
    given = _given(others)
    laterals = given.pop(LATERAL, [])
    films = [_film(root / item.image, size) for item in tqdm(items, "view", mininterval=10)]
    strangers = [shrunk(picture, size) for picture in _strangers(config["draws"], config["seed"])]
    strangers += [_film(path, size) for paths in given.values() for path in paths]
    sides = [_film(path, size) for path in laterals]
    return Pool(_stacked(films, size), _stacked(sides, size), _stacked(strangers, size))


def shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """A picture float32 [H, W] in 0..1 in a square uint8 [size, size]: 1..255 inside it, 0 around it."""
    square = lungs.resize(lungs.square_of(np.clip(pixels, 1 / 255, 1)), size)
    return np.rint(square * 255).astype(np.uint8)


def draw(pool: Pool, config: dict[str, Any], count: int) -> Batch:
    """A random batch: whole and cropped films, laterals, strangers and ruined films in the configured shares."""
    shares = config["shares"]
    sides = round(count * shares["lateral"]) if len(pool.laterals) else 0
    cuts, others, ruins = (round(count * shares[name]) for name in ("cropped", "strangers", "ruined"))
    fronts = count - sides - cuts - others - ruins
    parts = [
        _some(pool.films, fronts),
        _cropped(_some(pool.films, cuts), config["augment"]["cut"]),
        _some(pool.laterals, sides),
        _some(pool.strangers, others),
        _ruined(_some(pool.films, ruins)),
    ]
    kind = torch.repeat_interleave(torch.arange(5), torch.tensor([len(part) for part in parts]))
    return _shown(torch.cat(parts), kind, config)


def standardised(images: torch.Tensor) -> torch.Tensor:
    """What `lungs.segmentation_tensor` does after its resize, for a batch float32 [N, 1, s, s]."""
    every = images[:, :, ::2, ::2].flatten(1)  # a quarter of the pixels has the same percentiles
    low, high = torch.quantile(every, torch.tensor([0.01, 0.99]), dim=1)[:, :, None, None, None]
    return (2 * (images - low) / (high - low).clamp(min=1e-6) - 1).clamp(-1.5, 1.5)


def turned(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Each image [N, 1, s, s] turned counter-clockwise by its number of quarters, int64 [N]."""
    out = images.clone()
    for quarters in (1, 2, 3):
        out[turns == quarters] = torch.rot90(images[turns == quarters], quarters, (2, 3))
    return out


def inverted(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen images [N, 1, s, s] with black and white exchanged where they are not 0, bool [N]."""
    return torch.where(chosen[:, None, None, None] & (images > 0), 1 + 1 / 255 - images, images)


def _shown(images: torch.Tensor, kind: torch.Tensor, config: dict[str, Any]) -> Batch:
    """Pictures uint8 [N, S, S] as somebody may show them; `kind` is the place of each in the parts of `draw`."""
    how, count = config["augment"], len(images)
    turn = torch.where(torch.rand(count) < how["upright"], 0, torch.randint(1, 4, (count,)))
    wrong = torch.rand(count) < how["inverted"]
    x = images[:, None].float() / 255
    x = torch.where(x > 0, x.clamp(min=1e-3) ** (how["contrast"] * _uniform(count, 1, 1, 1)).exp(), x)
    x = turned(inverted(_edged(x, how), wrong), turn)
    x = _moved(x, how, config["input_size"])
    x = _blurred(x, how) + torch.rand(count, 1, 1, 1) * how["noise"] * torch.randn_like(x)
    film, cropped, lateral = (chosen.float() for chosen in (kind < 3, kind == 1, kind == 2))
    return Batch(standardised(x), film, wrong.float(), lateral, cropped, turn)


def _moved(x: torch.Tensor, how: dict[str, Any], side: int) -> torch.Tensor:
    """Rotated, zoomed, stretched and shifted by a little, mirrored half of the time, and brought to `side`."""
    n = len(x)
    angle, zoom = _uniform(n) * math.radians(how["rotation_deg"]), 1 + _uniform(n) * how["zoom"]
    across, down = zoom * (1 + _uniform(n) * how["stretch"]), zoom * (1 + _uniform(n) * how["stretch"])
    theta = torch.zeros(n, 2, 3)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * across * mirror, -angle.sin() * down
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * across * mirror, angle.cos() * down
    theta[:, :, 2] = _uniform(n, 2) * 2 * how["shift"]
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def _edged(x: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
    """Some pictures get a plain strip along one side, as plates, captions and shutters draw it."""
    out, side = x.clone(), x.shape[-1]
    for i in torch.nonzero(torch.rand(len(x)) < how["masked_edge"]).flatten().tolist():
        strip = torch.rot90(out[i], int(torch.randint(4, (1,))), (1, 2))
        strip[:, : int(torch.randint(1, side // 8, (1,)))] = float(torch.rand(1))
    return out


def _blurred(x: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.where(torch.rand(len(x), 1, 1, 1) < how["blurred"], soft, x)


def _cropped(films: torch.Tensor, cut: list[float]) -> torch.Tensor:
    """Films uint8 [N, S, S] of which one end is missing, centred in their squares again."""
    out, side = torch.zeros_like(films), films.shape[-1]
    for i, film in enumerate(films):
        inside = film > 0
        rows, columns = (torch.nonzero(inside.any(dim=d)).flatten() for d in (1, 0))
        part = film[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        quarters = int(torch.randint(4, (1,)))
        part = torch.rot90(part, quarters)
        part = part[: part.shape[0] - int(part.shape[0] * float(torch.empty(1).uniform_(*cut)))]
        part = torch.rot90(part, -quarters)
        pixels = part.numpy().astype(np.float32) / 255
        out[i] = torch.from_numpy(shrunk(pixels, side))
    return out


def _ruined(films: torch.Tensor) -> torch.Tensor:
    """Films uint8 [N, S, S] that are none any more: a quarter each cut, shuffled, wrapped around and scrambled."""
    quarter = torch.arange(len(films)) % 4
    out = films.clone()
    for k, ruin in enumerate((_piece, _shuffled, _wrapped, _scrambled)):
        for i in torch.nonzero(quarter == k).flatten().tolist():
            out[i] = ruin(films[i])
    return out


def _piece(film: torch.Tensor) -> torch.Tensor:
    """A square of a fifth to two fifths of the side, drawn large."""
    side = film.shape[-1]
    cut = int(side * float(torch.empty(1).uniform_(0.2, 0.4)))
    y, x = (int(v) for v in torch.randint(0, side - cut, (2,)))
    part = film[None, None, y : y + cut, x : x + cut].float()
    return F.interpolate(part, size=side, mode="bilinear")[0, 0].to(torch.uint8)


def _shuffled(film: torch.Tensor) -> torch.Tensor:
    """Its squares, four or five to a side, in any order."""
    n, side = int(torch.randint(4, 6, (1,))), film.shape[-1]
    squares = film.reshape(n, side // n, n, side // n).permute(0, 2, 1, 3).flatten(0, 1)[torch.randperm(n * n)]
    return squares.reshape(n, n, side // n, side // n).permute(0, 2, 1, 3).reshape(side, side)


def _wrapped(film: torch.Tensor) -> torch.Tensor:
    """Rolled by about half a side: what belongs together lies at opposite edges."""
    side = film.shape[-1]
    return torch.roll(film, int(side * float(torch.empty(1).uniform_(0.4, 0.6))), int(torch.randint(0, 2, (1,))))


def _scrambled(film: torch.Tensor) -> torch.Tensor:
    """The same frequencies at other places."""
    phase = torch.fft.fft2(torch.randn(film.shape)).angle()
    field = torch.fft.ifft2(torch.fft.fft2(film.float()).abs() * torch.exp(1j * phase)).real
    return (1 + 254 * (field - field.min()) / (field.max() - field.min()).clamp(min=1e-6)).to(torch.uint8)


def _strangers(how: dict[str, Any], seed: int) -> Iterator[np.ndarray]:
    """Drawn pictures of the kinds for tuning and cuttings of photographs, gray float32 in 0..1."""
    for kind in drawn.pictures(drawn.TUNED, how["each"], seed).values():
        yield from (_gray(picture) for picture in kind)
    yield from cuttings(how["photographs"], seed)


def cuttings(each: int, seed: int) -> Iterator[np.ndarray]:
    """Square cuttings, gray float32 in 0..1, of the photographs that come with the libraries."""
    rng = np.random.default_rng(seed)
    portrait = Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    photographs = [*load_sample_images().images, np.asarray(portrait.convert("RGB"))]
    for photograph in photographs:
        gray = _gray(photograph)
        for _ in range(each):
            cut = int(min(gray.shape) * rng.uniform(0.3, 1))
            y, x = (int(rng.integers(0, room - cut + 1)) for room in gray.shape)
            yield gray[y : y + cut, x : x + cut]


def _gray(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("L"), np.float32) / 255


def _given(folder: Path | None) -> dict[str, list[Path]]:
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder else []
    return {kind.name: sorted(kind.iterdir()) for kind in kinds}


def _film(path: Path, size: int) -> np.ndarray:
    return shrunk(decode.decode(path.read_bytes()).pixels, size)


def _stacked(pictures: Iterable[np.ndarray], size: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.zeros((size, size), np.uint8), *pictures])[1:])


def _some(pictures: torch.Tensor, count: int) -> torch.Tensor:
    return pictures[torch.randint(max(len(pictures), 1), (count,))] if count else pictures[:0]


def _uniform(*shape: int) -> torch.Tensor:
    return torch.empty(*shape).uniform_(-1, 1)
