"""How a picture shows a chest, if it shows one: turned, inverted, from the side."""

from __future__ import annotations

import numpy as np

from shared.bundles import ViewNetwork
from worker.pipeline.lungs import segmentation_tensor
from worker.pipeline.predictor import Predictor

TURNS = (0, 90, 180, 270)  # degrees counter-clockwise by which a picture stands turned
OUTPUTS = ("film", "inverted", "lateral", *(f"turned_{degrees}" for degrees in TURNS))

ENOUGH = 512  # pixels of the longer side: of a larger film every second, third, ... is looked at


def measure(pixels: np.ndarray, predictor: Predictor, network: ViewNetwork | None) -> dict[str, float]:
    """What the view network says about `pixels` float32 [H, W] in 0..1; nothing where the bundle has none.

    Probabilities 0..1: of a frontal or lateral chest film, of black and white exchanged, of a lateral one, of standing
    upright; and the most probable turn in degrees, counter-clockwise.
    """
    if network is None:
        return {}
    step = max(max(pixels.shape) // ENOUGH, 1)
    tensor = segmentation_tensor(pixels[::step, ::step], network.input_size)
    return read(predictor.view(tensor[None, None])[0])


def read(logits: np.ndarray) -> dict[str, float]:
    """The values of `measure` in the view network's logits float32 [7]."""
    film, inverted, lateral = (float(1 / (1 + np.exp(-np.clip(x, -30, 30)))) for x in logits[:3].astype(np.float64))
    raised = np.exp(logits[3:].astype(np.float64) - logits[3:].max())
    return {
        "view_film": film,
        "view_inverted": inverted,
        "view_lateral": lateral,
        "view_upright": float(raised[0] / raised.sum()),
        "view_turned_deg": float(TURNS[int(logits[3:].argmax())]),
    }
