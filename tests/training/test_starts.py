"""What a training begins from: carried weights land in the right layers, and nothing starts from the wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared import bundles
from shared.errors import Misconfigured
from tests.builders import tiny_bundle
from training import starts
from training.run import _frozen
from worker.runtimes import networks

CONFIG = {"architecture": "efficientnet_b0", "dropout": 0.2, "start": "efficientnet-lite0"}


def lite_of(backbone: torch.nn.Module) -> starts.State:
    """The state that EfficientNet-Lite0 would have: the same layers without gates, three channels, another head."""
    state = {}
    for number, (key, value) in enumerate(backbone.state_dict().items()):
        if ".fc1." in key or ".fc2." in key:
            continue
        stem = value.ndim == 4 and number == 0
        state[f"layer{number}.{key.rsplit('.', 1)[1]}"] = (
            torch.rand(32, 3, 3, 3) if stem else torch.rand_like(value * 1.0)
        )
    return state | {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(1000)}


def test_lite_weights_land_layer_by_layer_and_the_gates_are_open() -> None:
    backbone = networks.classifier("efficientnet_b0", 4).backbone
    given = lite_of(backbone)
    with torch.no_grad():
        starts._fill_lite(backbone, given)
    found = {k: v for k, v in backbone.state_dict().items() if ".fc1." not in k and ".fc2." not in k}
    for (key, mine), theirs in zip(found.items(), given.values(), strict=False):
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith("running_var"):
            theirs = theirs + starts.LITE_EPS - 1e-5
        torch.testing.assert_close(mine, theirs.sum(dim=1, keepdim=True) if theirs.shape[1:2] == (3,) else theirs)
    gates = [m for m in backbone.modules() if type(m).__name__ == "SqueezeExcitation"]
    assert len(gates) == 16
    with torch.no_grad():
        passed = gates[3]._scale(torch.rand(2, gates[3].fc1.in_channels, 4, 4))
    torch.testing.assert_close(passed, torch.full_like(passed, 0.88), atol=0.05, rtol=0)


def test_a_start_of_another_shape_is_refused() -> None:
    backbone = networks.classifier("efficientnet_b0", 4).backbone
    given = lite_of(backbone)
    name = next(k for k, v in given.items() if v.ndim == 4 and v.shape[0] == 96)
    given[name] = torch.rand(7, *given[name].shape[1:])
    with pytest.raises(Misconfigured, match="shape"):
        starts._fill_lite(backbone, given)
    with pytest.raises(ValueError, match="argument"):
        starts._fill_lite(backbone, dict(list(lite_of(backbone).items())[:-5]))


def test_self_supervised_weights_land_in_a_resnet_without_their_head() -> None:
    backbone = networks.classifier("resnet50", 4).backbone
    given = {f"module.pre.{k}": torch.rand_like(v * 1.0) for k, v in backbone.state_dict().items()}
    stem = next(iter(given))
    given[stem] = torch.rand(64, 3, 7, 7)
    with torch.no_grad():
        starts._fill_augnet(backbone, given | {"module.pre.fc.weight": torch.rand(768, 2048)})
    found = backbone.state_dict()
    torch.testing.assert_close(found["0.weight"], given[stem].sum(dim=1, keepdim=True))
    last = "7.2.bn3.running_var"
    torch.testing.assert_close(found[last], given[f"module.pre.{last}"])


def test_weights_of_another_checksum_or_of_no_package_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imgsim").mkdir()
    (tmp_path / "imgsim" / "__init__.py").write_text("raise RuntimeError('a start never runs the package')")
    (tmp_path / "imgsim" / "model.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Misconfigured, match="does not carry"):
        starts.begin({**CONFIG, "architecture": "resnet50", "start": "augnet"}, 4)
    with pytest.raises(Misconfigured, match="not installed"):
        starts._carried("no_such_package", "model.pth", "0" * 64)


def test_an_unknown_start_names_the_known_ones() -> None:
    with pytest.raises(Misconfigured, match="random, torchvision, bundle:FOLDER, efficientnet-lite0"):
        starts.begin({**CONFIG, "start": "imagenet"}, 4)


def test_a_training_goes_on_from_a_bundle_under_a_new_head(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    config = {"architecture": "tiny", "dropout": 0.0, "start": f"bundle:{tmp_path}"}
    stored = networks.load_classifier(bundles.read(tmp_path), 0)
    begun = starts.begin(config, len(bundle.manifest.classes) + 1)
    for key, value in stored.backbone.state_dict().items():
        torch.testing.assert_close(begun.backbone.state_dict()[key], value)
    assert begun.head.out_features == len(bundle.manifest.classes) + 1
    with pytest.raises(Misconfigured, match="has no resnet50"):
        starts.begin({**config, "architecture": "resnet50"}, 4)


@pytest.mark.parametrize(("architecture", "blocks"), [("resnet50", 8), ("densenet121", 13), ("efficientnet_b0", 9)])
def test_blocks_freeze_from_the_stem_on(architecture: str, blocks: int) -> None:
    model = networks.classifier(architecture, 4)
    assert len(_frozen(model, "all")) == blocks
    some = sum(p.numel() for block in _frozen(model, 3) for p in block.parameters())
    whole = sum(p.numel() for block in _frozen(model, "all") for p in block.parameters())
    assert 0 < some < whole == sum(p.numel() for p in model.backbone.parameters())
