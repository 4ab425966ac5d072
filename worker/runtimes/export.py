"""From torch to OpenVINO: graphs for the view, for the lungs, and for the whole ensemble with its class maps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shared import bundles
from shared.bundles import Bundle
from shared.errors import BundleError
from worker.runtimes import compiled, networks
from worker.runtimes.silent import openvino


class _Lungs(nn.Module):
    """Images [1, 1, S, S] -> lung probability [1, S, S]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.unet(images))[:, 0]


class _Ensemble(nn.Module):
    """Images [1, 1, S, S] -> logits [1, K], class maps [1, K, h, w] and features [1, D] of each network in turn."""

    def __init__(self, classifiers: list[networks.Classifier]) -> None:
        super().__init__()
        self.classifiers: Any = nn.ModuleList(classifiers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output for module in self.classifiers for output in module.explain(images))


def export(bundle: Bundle, cache: Path) -> Path:
    """Compile a bundle into `cache` and return the folder of its graphs; an older copy is replaced whole."""
    manifest = bundle.manifest
    classifiers = [networks.load_classifier(bundle, i) for i in range(len(manifest.networks))]
    with compiled.replacing(compiled.folder(bundle, cache)) as draft:
        _write(_Lungs(networks.load_unet(bundle)), manifest.lungs.input_size, draft / "lungs.xml")
        if manifest.view:
            _write(networks.load_view(bundle), manifest.view.input_size, draft / "view.xml")
        _write(_Ensemble(classifiers), manifest.preprocessing.input_size, draft / "classifiers.xml")
    return compiled.folder(bundle, cache)


def _write(module: nn.Module, side: int, path: Path) -> None:
    """Write a graph for one image of `side`: fixed shapes let the runtime choose its kernels beforehand.

    Weights stay float32, because folding the batch norms takes them off the float16 grid they were stored on.
    """
    module.eval()
    with torch.inference_mode():
        graph = openvino.convert_model(module, example_input=torch.zeros(1, 1, side, side))
    graph.reshape([1, 1, side, side])
    openvino.save_model(graph, path, compress_to_fp16=False)


if __name__ == "__main__":
    try:
        export(bundles.read(Path(sys.argv[1])), Path(sys.argv[2]))
    except BundleError as refusal:
        sys.exit(f"{refusal}"[:600])  # a list of every key that does not fit would hide the first
