"""The architectures in torch: classifiers with linear heads whose class maps come for free, and the lungs U-Net."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shared.bundles import Bundle, WeightsFile
from shared.errors import BundleError
from worker.pipeline.view import OUTPUTS


def _prepare_torchvision() -> torch.library.Library | None:
    """Make torchvision importable where its wheel was built for CUDA and torch was not.

    Its operators cannot be loaded then, and the import fails for want of `torchvision::nms`: declaring the schemas is
    enough, because no detector is used here. With wheels that match this does nothing.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise BundleError("torchvision is not installed")
    libraries = sorted(Path(spec.origin).parent.glob("_C*"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return fragment
    return None


_KEPT = _prepare_torchvision()  # the library lives as long as the process

from torchvision import models  # noqa: E402


class Classifier(nn.Module):
    """A backbone on one gray channel, global average pooling and a linear head.

    `forward` gives logits [N, K]; `explain` gives logits, class maps [N, K, h, w] (weights of the class times features,
    before any ReLU) and pooled features [N, D]. The mean of a class map plus the bias is the logit, exactly.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.backbone(images).mean(dim=(2, 3))))

    def explain(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [N, K], class maps [N, K, h, w] and pooled features [N, D] of images [N, 1, S, S]."""
        features = self.backbone(images)
        maps = nn.functional.conv2d(features, self.head.weight[:, :, None, None])
        return maps.mean(dim=(2, 3)) + self.head.bias, maps, features.mean(dim=(2, 3))


class UNet(nn.Module):
    """A small U-Net (Ronneberger 2015) with batch normalisation: [N, 1, S, S] -> lung logits [N, 1, S, S]."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(_double(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skips = []
        x = images
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        return self.out(x)


class View(nn.Module):
    """Four strided stages and one linear layer over the last grid: [N, 1, S, S] -> logits [N, outputs].

    No pooling takes the places away: where head and belly are is the question.
    """

    def __init__(self, widths: list[int], side: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(_strided(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True)))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1] * (side >> len(widths)) ** 2, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.stages(images).flatten(1)))


def classifier(architecture: str, classes: int, *, dropout: float = 0.2, imagenet: bool = False) -> Classifier:
    """A classifier on one gray channel; `imagenet` starts from torchvision's weights, which must be downloadable."""
    backbone, width = _backbone(architecture, imagenet)
    return Classifier(backbone, width, classes, dropout)


def load_classifier(bundle: Bundle, index: int) -> Classifier:
    """The classifier number `index` of a bundle, for evaluation, every key and shape checked; BundleError otherwise."""
    network = bundle.manifest.networks[index]
    module = classifier(network.architecture, len(bundle.manifest.classes))
    load(module, bundle, network)
    return module


def load_unet(bundle: Bundle) -> UNet:
    """The bundle's lungs network, in evaluation mode, every key and shape checked; BundleError otherwise."""
    module = UNet(bundle.manifest.lungs.widths)
    load(module, bundle, bundle.manifest.lungs)
    return module


def load_view(bundle: Bundle) -> View:
    """The bundle's view network, in evaluation mode, every key and shape checked; BundleError otherwise."""
    network = bundle.manifest.view
    if network is None:
        raise BundleError(f"{bundle.identity} has no view network")
    module = View(network.widths, network.input_size, len(OUTPUTS))
    load(module, bundle, network)
    return module


def load(module: nn.Module, bundle: Bundle, weights: WeightsFile) -> None:
    """Fill `module` with a safetensors file, strictly: a missing, unexpected or misshapen key is a BundleError."""
    state = {key: value.float() for key, value in load_file(bundle.path(weights)).items()}
    try:
        module.load_state_dict({**state, **_counters(module)}, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{weights.file} does not fit its architecture: {error}") from error
    module.eval()


def save(module: nn.Module, path: Path) -> None:
    """Write a module's weights as float16 safetensors; running statistics stay float32."""
    state = {}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        keep = key.endswith(("running_mean", "running_var"))
        state[key] = value.detach().cpu().to(torch.float32 if keep else torch.float16).contiguous()
    save_file(state, path)


def _counters(module: nn.Module) -> dict[str, torch.Tensor]:
    """Batch counters: state of training that serving never reads, so no bundle carries them."""
    return {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _strided(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _backbone(architecture: str, imagenet: bool) -> tuple[nn.Module, int]:
    weights = "DEFAULT" if imagenet else None
    if architecture == "resnet50":
        net = models.resnet50(weights=weights)
        net.conv1 = _gray(net.conv1)
        return nn.Sequential(*list(net.children())[:-2]), 2048
    if architecture == "densenet121":
        net = models.densenet121(weights=weights)
        net.features.conv0 = _gray(net.features.conv0)
        return nn.Sequential(net.features, nn.ReLU()), 1024
    if architecture == "efficientnet_b0":
        net = models.efficientnet_b0(weights=weights)
        net.features[0][0] = _gray(net.features[0][0])
        return net.features, 1280
    if architecture == "tiny":
        return nn.Sequential(*_tiny(1, 8), *_tiny(8, 16), *_tiny(16, 32)), 32
    raise BundleError(f"no architecture is called {architecture}")


def _tiny(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=4, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _gray(stem: nn.Conv2d) -> nn.Conv2d:
    """The stem for one channel: its weights summed over the three, which is what gray in three channels would see."""
    sizes: Any = {"kernel_size": stem.kernel_size, "stride": stem.stride, "padding": stem.padding}
    new = nn.Conv2d(1, stem.out_channels, bias=stem.bias is not None, **sizes)
    new.weight.data = stem.weight.data.sum(dim=1, keepdim=True)
    return new
