"""How a picture shows a chest, if it shows one: turned, inverted, from the side, cut off."""

from __future__ import annotations

import numpy as np

from shared.bundles import ViewNetwork
from worker.pipeline.lungs import segmentation_tensor
from worker.pipeline.predictor import Predictor

TURNS = (0, 90, 180, 270)  # degrees counter-clockwise by which a picture stands turned
OUTPUTS = ("film", "inverted", "lateral", "cropped", *(f"turned_{degrees}" for degrees in TURNS))

ENOUGH = 512  # pixels of the longer side: of a larger film every second, third, ... is looked at


def measure(pixels: np.ndarray, predictor: Predictor, network: ViewNetwork | None) -> dict[str, float]:
    """What the view network says about `pixels` float32 [H, W] in 0..1; nothing where the bundle has none.

    Probabilities 0..1: of a frontal or lateral chest film, of black and white exchanged, of a lateral one, of one that
    ends within the lungs, of standing upright; and the most probable turn in degrees, counter-clockwise.
    """
    if network is None:
        return {}
    step = max(max(pixels.shape) // ENOUGH, 1)
    tensor = segmentation_tensor(pixels[::step, ::step], network.input_size)
    return read(predictor.view(tensor[None, None])[0])


def read(logits: np.ndarray) -> dict[str, float]:
    """The values of `measure` in the view network's logits float32 [8]."""
    alone, turns = logits[: -len(TURNS)].astype(np.float64), logits[-len(TURNS) :].astype(np.float64)
    found = {
        f"view_{name}": float(1 / (1 + np.exp(-x))) for name, x in zip(OUTPUTS, np.clip(alone, -30, 30), strict=False)
    }
    raised = np.exp(turns - turns.max())
    upright, degrees = float(raised[0] / raised.sum()), float(TURNS[int(turns.argmax())])
    return found | {"view_upright": upright, "view_turned_deg": degrees}
