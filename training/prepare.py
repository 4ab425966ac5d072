"""Run the worker's own decode, quality and lungs code over an index and keep what training needs of every image."""

from __future__ import annotations

import json
import multiprocessing
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from shared.bundles import LungsNetwork, Preprocessing, checksum
from shared.errors import BundleError, Misconfigured, Rejected
from shared.schemas import RuntimeView
from training import index
from training.index import Item
from worker.pipeline import decode, lungs, quality
from worker.pipeline.predictor import Outputs
from worker.runtimes import networks

RECIPE = "recipe.json"
Recipe = tuple[LungsNetwork, list[Path], Preprocessing]
Seen = tuple[str, dict[str, float], np.ndarray, np.ndarray]
SILHOUETTE = 32  # side of the mask that the silhouette baseline sees


@dataclass(frozen=True)
class Row:
    """What became of one image: its measured values, or the code of the refusal (then its tensor is all zero)."""

    id: str
    refused: str
    values: dict[str, float]


class LungsPredictor:
    """The lungs network alone, behind the interface that the pipeline asks for."""

    def __init__(self, network: LungsNetwork, weights: Path) -> None:
        self.runtime = RuntimeView(name="torch", device="cpu", precision="f32", threads=1)
        self._module = networks.UNet(network.widths)
        state = {key: value.float() for key, value in load_file(weights).items()}
        counters = {k: v for k, v in self._module.state_dict().items() if k.endswith("num_batches_tracked")}
        self._module.load_state_dict({**state, **counters}, strict=True)
        self._module.eval()

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        """Lung probability float32 [N, S, S] of float32 [N, 1, S, S]."""
        with torch.inference_mode():
            return torch.sigmoid(self._module(torch.from_numpy(tensors)))[:, 0].numpy()

    def classify(self, tensors: np.ndarray) -> Outputs:
        """There are no classifiers yet: BundleError."""
        raise BundleError("prepare only finds lungs; its classifiers are still to be trained")


def lungs_network(config_path: Path, weights: Path) -> LungsNetwork:
    """The manifest's entry for trained lungs weights."""
    config = tomllib.loads(config_path.read_text(encoding="utf-8"))
    return LungsNetwork(
        file=weights.name,
        sha256=checksum(weights),
        widths=config["widths"],
        input_size=config["input_size"],
        threshold=config["threshold"],
    )


def prepare(
    items: list[Item],
    root: Path,
    network: LungsNetwork,
    weights: Path,
    preprocessing: Preprocessing,
    out: Path,
    *,
    without: Sequence[Path] = (),
    processes: int = 2,
) -> None:
    """Write tensors.npy int8 [N, S, S], silhouettes.npy uint8 [N, 32, 32] and rows.jsonl; goes on where it stopped.

    `without` are lungs networks that each never saw one fold of the training masks. The network finds the lungs of its
    own training images better than those of a new film; on them, the one that did not see them takes its place, so
    that the classifiers learn from masks as good as those of service.
    """
    out.mkdir(parents=True, exist_ok=True)
    _same_recipe(out, network, preprocessing, without)
    done = len(read_rows(out))
    side, count = preprocessing.input_size, len(items)
    tensors = _array(out / "tensors.npy", (count, side, side), np.int8)
    silhouettes = _array(out / "silhouettes.npy", (count, SILHOUETTE, SILHOUETTE), np.uint8)
    tasks = [(root / item.image, _which(item, without)) for item in items[done:]]
    seen = _in_processes(tasks, processes, (network, [weights, *without], preprocessing))
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        for i, result in enumerate(tqdm(seen, "prepare", count, initial=done, mininterval=10), start=done):
            refused, values, tensors[i], silhouettes[i] = result
            file.write(json.dumps(asdict(Row(items[i].id, refused, values))) + "\n")


def read_rows(out: Path) -> list[Row]:
    """The rows written so far, in the order of the index."""
    return list(_rows(out / "rows.jsonl"))


def quantise(tensor: np.ndarray, clip: float) -> np.ndarray:
    """A tensor in -clip..clip as int8; zero, the outside of the lungs, stays exactly zero."""
    return np.rint(tensor * (127 / clip)).astype(np.int8)


def _rows(path: Path) -> Iterator[Row]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield Row(**json.loads(line))


def must_match(out: Path, network: LungsNetwork, preprocessing: Preprocessing) -> None:
    """Misconfigured where `out` was prepared by another lungs network or preprocessing."""
    path = out / RECIPE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {**found, "without": []} != _recipe(network, preprocessing, ()):
        raise Misconfigured(f"{out} was prepared by another lungs network or preprocessing: prepare it again")


def _same_recipe(out: Path, network: LungsNetwork, preprocessing: Preprocessing, without: Sequence[Path]) -> None:
    """What other lungs networks or another preprocessing prepared is not gone on with."""
    path, recipe = out / RECIPE, json.dumps(_recipe(network, preprocessing, without))
    if path.is_file() and path.read_text(encoding="utf-8") != recipe:
        (out / "rows.jsonl").unlink(missing_ok=True)
    path.write_text(recipe, encoding="utf-8")


def _recipe(network: LungsNetwork, preprocessing: Preprocessing, without: Sequence[Path]) -> dict[str, Any]:
    named = {"lungs": network.model_dump(), "preprocessing": preprocessing.model_dump()}
    return named | {"without": [checksum(path) for path in without]}


def _which(item: Item, without: Sequence[Path]) -> int:
    """Which network finds the lungs of an image: 0 the released one, 1 + k the one that did not see fold k."""
    own = bool(without and item.mask) and item.split == "train"
    return 1 + index.fold(item) if own else 0


def _array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if path.is_file():
        found = np.load(path, mmap_mode="r+")
        if found.shape == shape and found.dtype == dtype:
            return found
    return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)


def _in_processes(tasks: list[tuple[Path, int]], processes: int, how: Recipe) -> Iterator[Seen]:
    """The images one after the other, seen by so many processes; spawned, because torch does not survive a fork."""
    if processes == 1:
        _begin(*how)
        yield from map(_one, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, how) as pool:
        yield from pool.map(_one, tasks, chunksize=16)


_state: tuple[list[LungsPredictor], LungsNetwork, Preprocessing]


def _begin(network: LungsNetwork, weights: list[Path], preprocessing: Preprocessing) -> None:
    torch.set_num_threads(1)  # one process per core: contended threads are five times slower
    global _state
    _state = ([LungsPredictor(network, path) for path in weights], network, preprocessing)


def _one(task: tuple[Path, int]) -> Seen:
    """One image as serving sees it, its limits aside: they are chosen from these very values."""
    predictors, network, preprocessing = _state
    path, which = task
    predictor = predictors[which]
    side = preprocessing.input_size
    empty = np.zeros((side, side), np.int8), np.zeros((SILHOUETTE, SILHOUETTE), np.uint8)
    try:
        radiograph = decode.decode(path.read_bytes())
        values = quality.check_image(radiograph, {})
        found = lungs.find(radiograph.pixels, predictor, network, preprocessing)
        values |= quality.check_lungs(radiograph, found, {})
    except Rejected as error:
        return error.code, {}, *empty
    tensor = lungs.tensor(radiograph.pixels, found, preprocessing)
    return "", values, quantise(tensor, preprocessing.clip), silhouette(found.mask)


def silhouette(mask: np.ndarray) -> np.ndarray:
    """The mask bool [H, W] in its square, as uint8 [32, 32]: where the lungs are and what shape they have, no more."""
    return np.rint(lungs.resize(lungs.square_of(mask.astype(np.float32)), SILHOUETTE) * 255).astype(np.uint8)
