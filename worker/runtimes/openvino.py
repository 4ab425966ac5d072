"""The CPU runtime: compiled OpenVINO graphs, which need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared.bundles import Bundle
from shared.errors import BundleError
from shared.schemas import RuntimeView
from worker.pipeline import ood
from worker.pipeline.predictor import Outputs
from worker.runtimes import compiled, known
from worker.runtimes.silent import openvino


class OpenVINOPredictor:
    """The networks of a bundle on this CPU; `precision` is bf16, f32 or auto: bf16 where the CPU computes in it."""

    def __init__(self, bundle: Bundle, *, cache: Path, precision: str = "auto", threads: int = 0) -> None:
        graphs = compiled.ensure(bundle, cache)
        used = threads or compiled.cores()
        core = openvino.Core()
        self._lungs = _open(core, graphs / "lungs.xml", precision, used)
        self._classifiers = _open(core, graphs / "classifiers.xml", precision, used)
        self._view = _open(core, graphs / "view.xml", precision, used) if bundle.manifest.view else None
        self._known = known.load(bundle)
        self.runtime = RuntimeView(name="openvino", device="cpu", precision=_precision(self._classifiers), threads=used)

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        """Lung probability float32 [N, S, S] of float32 [N, 1, S, S]."""
        return np.concatenate([_infer(self._lungs, image)[0] for image in tensors[:, None]])

    def view(self, tensors: np.ndarray) -> np.ndarray:
        """Logits float32 [N, 8] of float32 [N, 1, S, S]; BundleError where the bundle has no view network."""
        if self._view is None:
            raise BundleError("this bundle has no view network")
        return np.concatenate([_infer(self._view, image)[0] for image in tensors[:, None]])

    def classify(self, tensors: np.ndarray) -> Outputs:
        """The outputs of every classifier for float32 [N, 1, 224, 224], one image after the other.

        On a CPU a batch computes no faster than its images in turn, and the graph for one image can plan its memory.
        """
        said = [_infer(self._classifiers, image) for image in tensors[:, None]]
        joined = [np.concatenate(parts) for parts in zip(*said, strict=True)]
        logits, maps, features = joined[0::3], joined[1::3], joined[2::3]
        scores = ood.scores(self._known, features) if self._known else None
        return Outputs(np.stack(logits), np.stack(maps), tuple(features), scores)


def _open(core: openvino.Core, path: Path, precision: str, threads: int) -> Any:
    """An inference request of its own for a graph; threads are not pinned, because replicas share the cores."""
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    if precision != "auto":
        options["INFERENCE_PRECISION_HINT"] = precision
    try:
        return core.compile_model(path, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise BundleError(f"{path} cannot be loaded, remove its folder and compile again: {error}") from error


def _infer(request: Any, image: np.ndarray) -> list[np.ndarray]:
    """All outputs for one image [1, 1, S, S], copied out of the request's own buffers."""
    said = request.infer({0: np.ascontiguousarray(image)})
    return [said[i].copy() for i in range(len(said))]


def _precision(request: Any) -> str:
    hint = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    return "bf16" if hint == openvino.Type.bf16 else "f32"
