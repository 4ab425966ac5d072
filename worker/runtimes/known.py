"""Where the features of the training films lie, read from a bundle without torch."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from safetensors.numpy import load_file

from shared.bundles import Bundle
from shared.errors import BundleError
from worker.pipeline.ood import Gaussians


def load(bundle: Bundle) -> tuple[Gaussians, ...]:
    """One Gaussians per network in the order of the manifest, none without a model; BundleError if it is malformed."""
    model = bundle.manifest.ood
    if model is None:
        return ()
    arrays = load_file(bundle.path(model))
    names = [network.name for network in bundle.manifest.networks]
    keys = {name: {field.name: f"{name}.{field.name}" for field in fields(Gaussians)} for name in names}
    if set(arrays) != {key for each in keys.values() for key in each.values()}:
        raise BundleError(f"{model.file} does not hold the arrays of {names}")
    return tuple(_checked({part: arrays[key] for part, key in each.items()}, model.file) for each in keys.values())


def _checked(arrays: dict[str, np.ndarray], file: str) -> Gaussians:
    one = Gaussians(**{part: array.astype(np.float32) for part, array in arrays.items()})
    fits = one.axes.ndim == one.centres.ndim == 2 and one.mean.shape == one.axes.shape[1:]
    if not fits or one.centres.shape[1] != len(one.axes) or not all(np.isfinite(x).all() for x in arrays.values()):
        raise BundleError(f"{file} holds arrays that do not fit each other")
    return one
