"""Which runtime serves a bundle on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shared.bundles import Bundle
from shared.errors import Misconfigured
from worker.pipeline.predictor import Predictor
from worker.runtimes import compiled


def open_predictor(
    bundle: Bundle,
    *,
    cache: Path,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "cpu",
    threads: int = 0,
) -> Predictor:
    """The networks of `bundle`, ready: torch on a GPU, OpenVINO on a CPU, torch where that is not installed.

    Nothing heavy is imported before this is called. Raises BundleError, or Misconfigured for a runtime that is not
    installed or not made for the device.
    """
    chosen = _chosen(runtime, device)
    if chosen == "openvino":
        from worker.runtimes.openvino import OpenVINOPredictor

        return OpenVINOPredictor(bundle, cache=cache, precision=precision, threads=threads)
    from worker.runtimes.torch import TorchPredictor

    if precision == "auto":
        precision = "bf16" if device == "cuda" else "f32"
    return TorchPredictor(bundle, device=device, precision=precision, threads=threads)


def prepare(bundle: Bundle, *, cache: Path, runtime: str = "auto", device: str = "cpu") -> None:
    """Compile now what the first `open_predictor` would, without loading anything here. BundleError, Misconfigured."""
    if _chosen(runtime, device) == "openvino":
        compiled.ensure(bundle, cache)


def _chosen(runtime: str, device: str) -> str:
    if runtime == "openvino" and device != "cpu":
        raise Misconfigured("the OpenVINO runtime serves CPUs; set HILUM_RUNTIME=torch for a GPU")
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and _installed("openvino") else "torch"
    if not _installed(runtime):
        raise Misconfigured(f"the runtime {runtime} is not installed")
    return runtime


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
