"""A chest film of nobody: a draw from the principal components of freely licensed training images.

The images are aligned by their lungs' box, so that the mean is a chest and the components are ways in which chests
differ. A draw mixes hundreds of people; no pixel of it is a pixel of one of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from shared.bundles import LungsNetwork, Preprocessing
from shared.errors import Misconfigured
from training.index import Item
from training.prepare import LungsPredictor
from worker.pipeline import decode, lungs

SIDE = 256
SOURCE = "kermany-guangzhou-paediatric"  # CC BY 4.0 throughout
IMAGES = 800
COMPONENTS = 60
SPREAD = 0.8  # of the components' own deviations: a little nearer to the mean than people are
MARGIN = 0.22  # around the lungs, as a share of their longer side: shoulders, neck and upper belly belong to a film
FEWEST = 50  # with fewer, a draw could resemble one of them


def draw(items: list[Item], root: Path, network: LungsNetwork, weights: Path, seed: int) -> np.ndarray:
    """One synthetic film uint8 [256, 256] from the training images of SOURCE."""
    chosen = [item for item in items if item.source == SOURCE and item.split == "train" and item.label == "normal"]
    chosen = sorted(chosen, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest())[:IMAGES]
    predictor = LungsPredictor(network, weights)
    found = [_aligned(root / item.image, predictor, network) for item in tqdm(chosen, "sample", mininterval=10)]
    films = [film for film in found if film is not None]
    if len(films) < FEWEST:
        raise Misconfigured(f"{len(films)} images of {SOURCE} are too few to draw from")
    return drawn(np.stack(films), seed)


def drawn(films: np.ndarray, seed: int) -> np.ndarray:
    """One draw uint8 [S, S] from the principal components of films float32 [N, S, S] in 0..1."""
    flat = films.reshape(len(films), -1)
    mean = flat.mean(axis=0)
    _, deviations, components = np.linalg.svd(flat - mean, full_matrices=False)
    kept = min(COMPONENTS, len(films) - 1)
    weights = np.random.default_rng(seed).normal(size=kept) * deviations[:kept] / np.sqrt(len(films) - 1)
    film = mean + SPREAD * weights @ components[:kept]
    low, high = np.percentile(film, (0.5, 99.5))
    levels = np.clip((film - low) / (high - low), 0, 1) * 235 + 10
    return levels.reshape(films.shape[1:]).astype(np.uint8)


def save(film: np.ndarray, path: Path) -> None:
    """Write a film as a small gray PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film).save(path, optimize=True)


def _aligned(path: Path, predictor: LungsPredictor, network: LungsNetwork) -> np.ndarray | None:
    """The square around the lungs float32 [256, 256] in 0..1; None where it leaves the film by far."""
    pixels = decode.decode(path.read_bytes()).pixels
    box = lungs.find(pixels, predictor, network, Preprocessing.model_validate({"crop_margin": MARGIN})).box
    height, width = pixels.shape
    reach = 0.12 * (box[2] - box[0])  # a little black at the edges is normal on a film
    if box[2] == box[0] or min(box[0], box[1], width - box[2], height - box[3]) < -reach:
        return None
    left, top, right, bottom = box
    rows = np.clip(np.arange(top, bottom), 0, height - 1)
    columns = np.clip(np.arange(left, right), 0, width - 1)
    crop = lungs.resize(pixels[rows][:, columns], SIDE)
    low, high = np.percentile(crop, (1, 99))
    return np.clip((crop - low) / max(float(high - low), 1e-6), 0, 1)
