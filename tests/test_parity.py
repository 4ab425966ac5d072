"""Every runtime says what torch says in float32."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from shared import bundles
from shared.bundles import Bundle, Network
from shared.errors import BundleError, Misconfigured
from tests.builders import tiny_bundle
from worker.runtimes import compiled, parity
from worker.runtimes.choose import open_predictor

ARCHITECTURES = ("resnet50", "densenet121", "efficientnet_b0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the real architectures with random weights, whose batch statistics fit their inputs."""
    import torch

    from worker.runtimes import networks

    folder = tmp_path_factory.mktemp("full")
    small = tiny_bundle(folder)
    torch.manual_seed(1)
    images = torch.from_numpy(parity.synthetic(small, 4)[0])
    named = []
    for name in ARCHITECTURES:
        module = networks.classifier(name, 4)
        with torch.inference_mode():
            module(images)
            module(images)
        networks.save(module, folder / f"{name}.safetensors")
        checksum = bundles.checksum(folder / f"{name}.safetensors")
        named.append(Network(name=name, architecture=name, file=f"{name}.safetensors", sha256=checksum))
    changes = {"name": "random", "networks": named, "created_at": datetime.now(UTC)}
    return bundles.write(folder, small.manifest.model_copy(update=changes))


@pytest.mark.parametrize(("precision", "shift", "correlation"), [("f32", 1e-4, 0.999), ("bf16", 0.02, 0.98)])
def test_openvino_says_what_torch_says(
    tiny: Bundle, cache: Path, precision: str, shift: float, correlation: float
) -> None:
    reference = open_predictor(tiny, cache=cache, runtime="torch", precision="f32", threads=1)
    other = open_predictor(tiny, cache=cache, runtime="openvino", precision=precision, threads=1)
    found = parity.compare(reference, other, *parity.synthetic(tiny, 8))
    assert found.max_probability_shift <= shift
    assert found.cam_correlation_median >= correlation
    assert found.max_lungs_shift <= max(shift, 0.05 if precision == "bf16" else 0)
    assert precision == "bf16" or found.argmax_agreement == 1.0


def test_the_real_architectures_agree(full_size: Bundle, cache: Path) -> None:
    images, lungs = parity.synthetic(full_size, 2, seed=5)
    reference = open_predictor(full_size, cache=cache, runtime="torch", precision="f32", threads=1)
    other = open_predictor(full_size, cache=cache, runtime="openvino", precision="f32", threads=1)
    found = parity.compare(reference, other, images, lungs)
    assert found.max_probability_shift <= 1e-4
    assert found.cam_correlation_min >= 0.999
    ours, theirs = other.classify(images), reference.classify(images)
    assert [f.shape for f in ours.features] == [(2, 2048), (2, 1024), (2, 1280)]
    assert ours.maps.shape == (3, 2, 4, 7, 7)
    for a, b in zip(ours.features, theirs.features, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


def test_maps_average_to_the_logits(tiny: Bundle, cache: Path) -> None:
    """The bias of the tiny heads is zero, so the class maps, averaged, are the logits: Grad-CAM comes for free."""
    said = open_predictor(tiny, cache=cache, precision="f32", threads=1).classify(parity.synthetic(tiny, 3)[0])
    np.testing.assert_allclose(said.maps.mean(axis=(3, 4)), said.logits, atol=1e-4)


def test_a_compiled_bundle_needs_no_torch(tiny: Bundle, cache: Path) -> None:
    compiled.ensure(tiny, cache)
    code = """
import sys
sys.modules["torch"] = None
from pathlib import Path
import numpy as np
from shared import bundles
from worker.runtimes.choose import open_predictor
predictor = open_predictor(bundles.read(Path(sys.argv[1])), cache=Path(sys.argv[2]), threads=1)
print(predictor.runtime.name, predictor.classify(np.zeros((1, 1, 224, 224), np.float32)).logits.shape)
"""
    command = [sys.executable, "-c", code, str(tiny.root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["openvino", "(3, 1, 4)\n"]


def test_a_bundle_is_compiled_once(tiny: Bundle, cache: Path) -> None:
    graph = compiled.ensure(tiny, cache) / "classifiers.xml"
    before = graph.stat().st_ino
    compiled.ensure(tiny, cache)
    assert graph.stat().st_ino == before
    assert not [path for path in cache.iterdir() if path.name.startswith(f".{tiny.manifest.name}")]


def test_a_damaged_graph_is_named(tiny: Bundle, cache: Path, tmp_path: Path) -> None:
    target = compiled.folder(tiny, tmp_path)
    target.mkdir(parents=True)
    for name in compiled.GRAPHS:
        (target / f"{name}.xml").write_text("nothing")
    with pytest.raises(BundleError, match="cannot be loaded"):
        open_predictor(tiny, cache=tmp_path, runtime="openvino")


def test_a_bundle_that_cannot_be_compiled_says_why(tiny: Bundle, tmp_path: Path) -> None:
    wrong = tiny.manifest.networks[0].model_copy(update={"architecture": "densenet121"})
    altered = tiny.manifest.model_copy(update={"networks": [wrong]})
    folder = tmp_path / "wrong"
    folder.mkdir()
    for weights in (wrong, tiny.manifest.lungs):
        (folder / weights.file).write_bytes(tiny.path(weights).read_bytes())
    with pytest.raises(BundleError, match="does not fit its architecture"):
        open_predictor(bundles.write(folder, altered), cache=tmp_path, runtime="openvino")


def test_openvino_is_not_for_gpus(tiny: Bundle, cache: Path) -> None:
    with pytest.raises(Misconfigured):
        open_predictor(tiny, cache=cache, runtime="openvino", device="cuda")
