"""A drawn data set of forty-eight films in the layout of a data pack, and configurations that train in seconds."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from tests.builders import chest, tiny_bundle
from training import __main__ as command
from training import index

FOLDERS = ("COVID", "Lung_Opacity", "Normal", "Viral_Pneumonia")
SPLITS = ("train",) * 5 + ("stop",) * 2 + ("val",) * 3 + ("test",) * 2
NAMES = ("first", "second")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manifest.csv, images and masks; the class shows as a pattern inside the lungs."""
    root = tmp_path_factory.mktemp("data")
    rows = [_film(root, folder, k, n, split) for k, folder in enumerate(FOLDERS) for n, split in enumerate(SPLITS)]
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="session")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of two tiny networks: the shipped ones with other sizes and little work."""
    folder = tmp_path_factory.mktemp("configs")
    shipped = (command.CONFIGS / "resnet50.toml").read_text(encoding="utf-8")
    sizes = "".join(
        f"[[phases]]\nuntil = {until}\nsize = {size}\ncrop = {crop}\nbatch_size = 8\n"
        for until, size, crop in ((0.5, 64, 64), (1.0, 224, 160))
    )
    for name in NAMES:
        text = re.sub(r"(?s)\[\[phases\]\].*?(?=\[augment\])", sizes, shipped)
        for key, value in {
            "name": f'"{name}"', "architecture": '"tiny"', "start": '"random"', "work": 4.0, "rounds": 4,
            "teacher": '"first"' if name == "second" else '""', "bf16": "false", "recalibration_images": 12,
            "stop_size": 64, "learning_rate": 1e-2, "seed": len(name),
        }.items():  # fmt: skip
            text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    (folder / "leave-one-out.toml").write_text((folder / "first.toml").read_text(encoding="utf-8"), encoding="utf-8")
    view = (command.CONFIGS / "view.toml").read_text(encoding="utf-8")
    for key, value in {
        "widths": "[4, 4]",
        "epochs": 1,
        "steps": 2,
        "batch_size": 8,
        "each": 2,
        "photographs": 2,
    }.items():
        view = re.sub(rf"(?m)^{key} = (\[.*?\]|\S+)", f"{key} = {value}", view)
    (folder / "view.toml").write_text(view, encoding="utf-8")
    lungs = (command.CONFIGS / "lungs.toml").read_text(encoding="utf-8")
    lungs = re.sub(r"(?m)^widths = .*$", "widths = [4, 8]", lungs)
    lungs = re.sub(r"(?m)^epochs = .*$", "epochs = 1", lungs)
    (folder / "lungs.toml").write_text(re.sub(r"(?m)^input_size = .*$", "input_size = 64", lungs), encoding="utf-8")
    gate = (command.CONFIGS / "calibration.toml").read_text(encoding="utf-8")
    # A dozen films know little of how films differ: a wide gate.
    (folder / "calibration.toml").write_text(re.sub(r"(?m)^slack = \S+", "slack = 1.0", gate), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def hilum_train() -> Callable[..., str]:
    """`hilum-train` in this process; its output, or the error it ended with."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(command.app, [str(a) for a in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture(scope="session")
def runs(data: Path, configs: Path, hilum_train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which index, lungs, prepare and train have run.

    One epoch teaches a U-Net nothing, so the tiny bundle's, which knows drawn lungs, takes the trained one's place.
    """
    runs = tmp_path_factory.mktemp("runs")
    hilum_train("index", "--data", data, "--runs", runs)
    hilum_train("lungs", "--data", data, "--runs", runs, "--configs", configs)
    for folder in ("lungs", "lungs-without-0", "lungs-without-1"):
        shutil.copy(tiny_bundle(runs / "tiny").root / "lungs.safetensors", runs / folder)
    hilum_train("prepare", "--data", data, "--runs", runs, "--configs", configs, "--processes", 1)
    hilum_train("train", *NAMES, "--runs", runs, "--configs", configs)
    return runs


@pytest.fixture(scope="session")
def drafted(runs: Path, data: Path, configs: Path, hilum_train: Callable[..., str]) -> Path:
    """The draft of a bundle, calibrated and evaluated in torch."""
    common = ("--data", data, "--runs", runs, "--runtime", "torch")
    hilum_train("calibrate", *common, "--configs", configs, "--networks", ",".join(NAMES), "--name", "drawn")
    hilum_train("evaluate", *common)
    hilum_train("audit", *common)
    return runs / "bundle"


def _film(root: Path, folder: str, k: int, n: int, split: str) -> dict[str, object]:
    pixels = chest(100 * k + n, (200, 180)).astype(np.int16)
    rows = np.arange(200)[:, None]
    pattern = 14 * np.sin(rows * (0.15, 0.45, 0.9, 0.0)[k]) * (pixels > 60) * (pixels < 130)
    vessels = ndimage.gaussian_filter(np.random.default_rng(1000 * k + n).normal(size=pixels.shape), 2.5)
    pattern = pattern + 40 * vessels  # no two people are drawn alike, as the search for copies must see
    name, group = f"{folder.lower()}_{n}", _group(folder, n, split)
    image, mask = root / "images" / folder / f"{name}.jpg", root / "masks" / folder / f"{name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels + pattern, 0, 255).astype(np.uint8)).save(image, quality=95)
    Image.fromarray((pixels > 60) & (pixels < 125)).save(mask)
    return {
        "id": name, "class": folder, "source": ("one", "two")[n % 2] if k < 2 else "three", "licence": "CC0",
        "patient_id": group, "split": "train" if split == "stop" else split, "mask_kind": "drawn",
        "original_width": 180, "original_height": 200, "sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
    }  # fmt: skip


def _group(folder: str, n: int, split: str) -> str:
    """A patient whose hash puts him where he is wanted."""
    wanted = "stop" if split == "stop" else "train"
    names = (f"{folder}-{n}-{i}" for i in range(1000))
    return next(name for name in names if index._stopped("train", name) == wanted)
