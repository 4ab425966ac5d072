"""A complete bundle of tiny networks, written without torch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from shared import bundles
from shared.bundles import Bundle, Calibration, LungsNetwork, Manifest, Network, Preprocessing

CLASSES = ["covid19", "lung_opacity", "normal", "viral_pneumonia"]
NETWORKS = ["resnet50", "densenet121", "efficientnet_b0"]
WIDTHS = [4, 8]
# Permissive, but a blank page, noise, a colour photograph, a stamp and an inverted film still fail them.
QUALITY = {
    "min_side_px": 96.0,
    "max_aspect": 3.0,
    "max_chroma": 0.1,
    "min_contrast": 0.15,
    "min_tones": 2.0,
    "max_roughness": 0.5,
    "min_lungs_area": 0.05,
    "min_lungs_smaller": 0.2,
    "min_lungs_certainty": 0.7,
}

State = dict[str, np.ndarray]


def tiny_bundle(folder: Path, *, seed: int = 7) -> Bundle:
    """A complete bundle of random networks that cost a millisecond; its U-Net finds the lungs of `chest`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    manifest = Manifest(
        name="tiny",
        version="0.0.1",
        classes=CLASSES,
        networks=[_tiny_network(folder, name, rng) for name in NETWORKS],
        lungs=_tiny_lungs(folder, rng),
        preprocessing=Preprocessing.model_validate({}),
        calibration=Calibration(quantiles=dict.fromkeys(CLASSES, 0.9)),
        quality=QUALITY,
        intended_use="tests",
        licence="Apache-2.0",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return bundles.write(folder, manifest)


def _tiny_network(folder: Path, name: str, rng: np.random.Generator) -> Network:
    state: State = {}
    for i, (inputs, outputs) in enumerate([(1, 8), (8, 16), (16, 32)]):
        state |= _convolution(f"backbone.{3 * i}", _random(rng, outputs, inputs), bias=True)
        state |= _norm(f"backbone.{3 * i + 1}", np.zeros(outputs))
    state["head.weight"] = rng.normal(0, 0.7, (len(CLASSES), 32))
    state["head.bias"] = np.zeros(len(CLASSES))
    file = f"{name}.safetensors"
    return Network(name=name, architecture="tiny", file=file, sha256=_saved(folder / file, state))


def _tiny_lungs(folder: Path, rng: np.random.Generator) -> LungsNetwork:
    """A U-Net that answers to one band of gray: -0.65..0.25 of the standardised image, widest at -0.2."""
    low, high = WIDTHS
    inner = _random(rng, high, low) * 0.01
    state = _double("down.0", _pick(low, 1, [(0, 0), (1, 0)]), _pick(low, low, [(0, 0), (1, 1)], blur=True))
    state["down.0.1.bias"][:2] = (0.65, 0.2)  # channel 0 grows above -0.65, channel 1 above -0.2
    state |= _double("down.1", inner, _random(rng, high, high) * 0.01)
    from_skip = _pick(low, low + high, [(0, high), (1, high + 1)]) + _random(rng, low, low + high) * 1e-3
    state |= _double("up.0", from_skip, _pick(low, low, [(0, 0), (1, 1)]))
    state["out.weight"] = np.array([20.0, -40.0, 0.0, 0.0]).reshape(1, low, 1, 1)
    state["out.bias"] = np.array([-3.0])
    file = "lungs.safetensors"
    sha256 = _saved(folder / file, state)
    return LungsNetwork(file=file, sha256=sha256, widths=WIDTHS, input_size=64, threshold=0.5)


def _random(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    return rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3))


def _pick(outputs: int, inputs: int, pairs: list[tuple[int, int]], *, blur: bool = False) -> np.ndarray:
    """A 3 x 3 convolution that copies or blurs input channel b into output channel a for each pair (a, b)."""
    weight = np.zeros((outputs, inputs, 3, 3))
    for a, b in pairs:
        weight[a, b] = 1 / 9 if blur else 0
        weight[a, b, 1, 1] = 1 / 9 if blur else 1
    return weight


def _double(prefix: str, first: np.ndarray, second: np.ndarray) -> State:
    state = _convolution(f"{prefix}.0", first) | _norm(f"{prefix}.1", np.zeros(len(first)))
    return state | _convolution(f"{prefix}.3", second) | _norm(f"{prefix}.4", np.zeros(len(second)))


def _convolution(prefix: str, weight: np.ndarray, *, bias: bool = False) -> State:
    return {f"{prefix}.weight": weight} | ({f"{prefix}.bias": np.zeros(len(weight))} if bias else {})


def _norm(prefix: str, bias: np.ndarray) -> State:
    ones, zeros = np.ones_like(bias), np.zeros_like(bias)
    parts = {"weight": ones, "bias": bias.copy(), "running_mean": zeros, "running_var": ones.copy()}
    return {f"{prefix}.{part}": value for part, value in parts.items()}


def _saved(path: Path, state: State) -> str:
    save_file({key: value.astype(_kept(key)) for key, value in state.items()}, path)
    return bundles.checksum(path)


def _kept(key: str) -> type:
    return np.float32 if key.endswith(("running_mean", "running_var")) else np.float16
