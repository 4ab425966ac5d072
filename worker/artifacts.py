"""The files that a diagnosis and its explanation leave behind, as bytes; nothing here knows where they are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from shared.bundles import Bundle
from worker.pipeline import explain, render
from worker.pipeline.analyze import Diagnosis
from worker.pipeline.explain import Cams

Files = dict[str, tuple[bytes, str]]  # name -> content and media type


def of_diagnosis(diagnosis: Diagnosis, bundle: Bundle) -> Files:
    """The film as it was analysed, the lungs' mask, and the class maps that explanations are drawn from."""
    return {
        "input.png": (render.png(render.gray8(diagnosis.radiograph.pixels)), "image/png"),
        "lungs.png": (render.png(diagnosis.lungs.mask), "image/png"),
        "cams.npz": (cams_of(diagnosis, bundle).to_bytes(), "application/zip"),
    }


def cams_of(diagnosis: Diagnosis, bundle: Bundle) -> Cams:
    """The class maps of a diagnosis with the names of their axes."""
    manifest = bundle.manifest
    networks = [network.name for network in manifest.networks]
    return Cams(diagnosis.maps, manifest.classes, networks, diagnosis.lungs.box, manifest.calibration.votes)


def of_gradcam(film: np.ndarray, mask: np.ndarray, cams: Cams, class_name: str) -> tuple[dict[str, Any], Files]:
    """What Grad-CAM says of one class, and its pictures: film uint8 [H, W], lungs bool [H, W]."""
    heat = explain.fuse(cams.maps, cams.classes.index(class_name), cams.votes)
    on_film = explain.heat_on_image(heat, cams.box, film.shape)
    picture = render.overlay(film.astype(np.float32) / 255.0, on_film, mask)
    result = {
        "class": class_name,
        "networks": cams.networks,
        "box": list(cams.box),
        **explain.describe(on_film, mask),
        "picture": "gradcam.png",
    }
    files = {"gradcam.png": (render.png(picture), "image/png"), "gradcam.jpg": (render.jpeg(picture), "image/jpeg")}
    return result, files
