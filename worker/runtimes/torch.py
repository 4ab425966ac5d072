"""The reference runtime: torch, on a CPU in float32 or bfloat16, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from shared.bundles import Bundle
from shared.errors import BundleError
from shared.schemas import RuntimeView
from worker.pipeline import ood
from worker.pipeline.predictor import Outputs
from worker.runtimes import known, networks


class TorchPredictor:
    """The networks of a bundle in torch; `precision` is f32 or bf16, `device` cpu or cuda."""

    def __init__(self, bundle: Bundle, *, device: str = "cpu", precision: str = "f32", threads: int = 0) -> None:
        if device == "cpu" and threads:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._bf16 = precision == "bf16"
        count = len(bundle.manifest.networks)
        self._unet = self._placed(networks.load_unet(bundle))
        self._classifiers = [self._placed(networks.load_classifier(bundle, i)) for i in range(count)]
        self._view = self._placed(networks.load_view(bundle)) if bundle.manifest.view else None
        self._known = known.load(bundle)
        used = torch.get_num_threads() if device == "cpu" else 1
        self.runtime = RuntimeView(name="torch", device=device, precision=precision, threads=used)

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        """Lung probability float32 [N, S, S] of float32 [N, 1, S, S]."""
        with self._running(tensors) as images:
            return _array(torch.sigmoid(self._unet(images).float())[:, 0])

    def view(self, tensors: np.ndarray) -> np.ndarray:
        """Logits float32 [N, 8] of float32 [N, 1, S, S]; BundleError where the bundle has no view network."""
        if self._view is None:
            raise BundleError("this bundle has no view network")
        with self._running(tensors) as images:
            return _array(self._view(images))

    def classify(self, tensors: np.ndarray) -> Outputs:
        """The outputs of every classifier for float32 [N, 1, 224, 224]."""
        with self._running(tensors) as images:
            said = [module.explain(images) for module in self._classifiers]
        logits, maps, features = (list(part) for part in zip(*said, strict=True))
        pooled = tuple(_array(x) for x in features)
        return Outputs(
            np.stack([_array(x) for x in logits]),
            np.stack([_array(x) for x in maps]),
            pooled,
            ood.scores(self._known, pooled) if self._known else None,
        )

    def _placed(self, module: Any) -> Any:
        return module.to(self._device, memory_format=torch.channels_last)

    @contextmanager
    def _running(self, tensors: np.ndarray) -> Iterator[torch.Tensor]:
        images = torch.from_numpy(np.ascontiguousarray(tensors)).to(self._device)
        images = images.to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            yield images


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
