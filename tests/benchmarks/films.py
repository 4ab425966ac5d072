"""What the worker's benchmarks work on: films of realistic size and kind, and the bundle that judges them."""

from __future__ import annotations

import io
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from shared import bundles
from shared.bundles import Bundle, Calibration, LungsNetwork, Manifest, Network, Preprocessing
from shared.settings import ROOT, Settings
from tests.builders import dicom, jpeg, png

SAMPLE = ROOT / "docs" / "sample" / "synthetic-radiograph.png"
CONFIGS = ROOT / "training" / "configs"
CLASSES = ["covid19", "lung_opacity", "normal", "viral_pneumonia"]
NETWORKS = ("resnet50", "densenet121", "efficientnet_b0")
PLAIN = (1024, 1024)  # height and width of a PNG or a JPEG, as public collections have them
DETECTOR = (2500, 2048)  # and of what a detector sends
NOISE = 2.0


def films(count: int) -> list[bytes]:
    """`count` files: of ten, six are PNG and three JPEG of 1024 x 1024, one is DICOM of 2500 x 2048 in 12 bits."""
    made = []
    for number in range(count):
        place = number % 10
        if place == 9:
            made.append(dicom((_film(number, DETECTOR) * 4095 / 255).astype(np.uint16), bits=12))
        else:
            pixels = _film(number, PLAIN).round().astype(np.uint8)
            made.append(png(pixels) if place < 6 else jpeg(pixels))
    return made


def the_bundle(folder: Path) -> Bundle:
    """The bundle that ships; where none does, its architectures with random weights and an open gate, in `folder`."""
    shipped = Settings.model_fields["bundle"].default
    return bundles.read(shipped) if (shipped / bundles.MANIFEST).is_file() else _random_bundle(folder)


def _film(seed: int, size: tuple[int, int]) -> np.ndarray:
    """The synthetic sample enlarged to `size` float32 [H, W] in 0..255, a little brighter or darker, with grain."""
    rng = np.random.default_rng(seed)
    with Image.open(io.BytesIO(SAMPLE.read_bytes())) as image:
        large = np.asarray(image.convert("L").resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
    return np.clip(large * rng.uniform(0.92, 1.0) + rng.normal(0, NOISE, size), 0, 255).astype(np.float32)


def _random_bundle(folder: Path) -> Bundle:
    import torch

    from worker.runtimes import networks

    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    config = tomllib.loads((CONFIGS / "lungs.toml").read_text("utf-8"))
    unet = networks.UNet(config["widths"])
    unet.state_dict()["out.bias"].fill_(9.0)  # random weights find no lungs: the whole film is taken for them
    networks.save(unet, folder / "lungs.safetensors")
    for name in NETWORKS:
        networks.save(networks.classifier(name, len(CLASSES)), folder / f"{name}.safetensors")
    sums = {path.name: bundles.checksum(path) for path in folder.glob("*.safetensors")}
    lungs = {"widths": config["widths"], "input_size": config["input_size"], "threshold": config["threshold"]}
    manifest = Manifest(
        name="random",
        version="0",
        classes=CLASSES,
        networks=[
            Network.model_validate(
                {"name": n, "architecture": n, "file": f"{n}.safetensors", "sha256": sums[f"{n}.safetensors"]}
            )
            for n in NETWORKS
        ],
        lungs=LungsNetwork(file="lungs.safetensors", sha256=sums["lungs.safetensors"], **lungs),
        preprocessing=Preprocessing.model_validate({}),
        calibration=Calibration(),
        quality={},
        licence="Apache-2.0",
        created_at=datetime.now(UTC),
    )
    return bundles.write(folder, manifest)
