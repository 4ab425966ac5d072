"""Augmentation: what is outside the lungs stays outside, and each change does what its name says."""

from __future__ import annotations

import tomllib

import pytest
import torch

from training import augment
from training.__main__ import CONFIGS

HOW = tomllib.loads((CONFIGS / "resnet50.toml").read_text(encoding="utf-8"))["augment"]


@pytest.fixture
def lungs() -> torch.Tensor:
    """Eight tensors float32 [8, 1, 96, 96] with two lungs, some of whose pixels are zero by chance."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    inside = sum((((rows - 48) / 34) ** 2 + ((columns - x) / 16) ** 2 < 1).float() for x in (26, 70))
    images = torch.randn(8, 1, 96, 96).clamp(-3, 3) * 0.5 + torch.linspace(-2, 2, 96)[:, None]
    images[torch.rand_like(images) < 0.01] = 0
    return images * inside


def test_a_batch_stays_in_range_and_its_background_zero(lungs: torch.Tensor) -> None:
    torch.manual_seed(1)
    changed = augment.augmented(lungs, HOW, 96, 3.0)
    assert changed.shape == lungs.shape
    assert changed.abs().max() <= 3
    assert not torch.equal(changed, lungs)
    still = augment.augmented(lungs, {**HOW, "rotation_deg": 0, "scale": 0, "shift": 0, "flip": False}, 96, 3.0)
    far = (
        torch.nn.functional.max_pool2d((lungs != 0).float(), 15, stride=1, padding=7) == 0
    )  # blur reaches a few pixels
    assert far.any()
    assert (still[far] == 0).all()


def test_jpeg_leaves_blocks_and_the_background(lungs: torch.Tensor) -> None:
    torch.manual_seed(2)
    coarse = augment.jpeg(lungs, share=1.0, worst=94, clip=3.0)
    assert (coarse[lungs == 0] == 0).all()
    assert 0 < (coarse - lungs).abs().mean() < 0.1
    assert (augment.jpeg(lungs, share=1.0, worst=5, clip=3.0) - lungs).abs().mean() > (coarse - lungs).abs().mean()
    assert torch.equal(augment.jpeg(lungs, share=0.0, worst=5, clip=3.0), lungs)


def test_the_border_is_eaten_from_outside_and_not_around_gray_values_that_are_zero(lungs: torch.Tensor) -> None:
    torch.manual_seed(3)
    for _ in range(4):
        eaten = augment.border(lungs, share=1.0, largest=0.03)
        gone = (lungs != 0) & (eaten == 0)
        assert (eaten[eaten != 0] == lungs[eaten != 0]).all()
        assert not gone[:, :, 40:56, 22:30].any()  # the middle of a lung, three pixels' reach from no edge
        if gone.any():
            return
    pytest.fail("no border was ever eaten")


def test_the_same_seed_draws_the_same_batch(lungs: torch.Tensor) -> None:
    torch.manual_seed(4)
    one = augment.augmented(lungs, HOW, 64, 3.0)
    torch.manual_seed(4)
    assert torch.equal(one, augment.augmented(lungs, HOW, 64, 3.0))
    assert one.shape[-1] == 64
