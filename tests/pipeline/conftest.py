"""The tiny bundle in the torch runtime, and a drawn radiograph."""

from __future__ import annotations

import pytest

from shared.bundles import Bundle
from tests.builders import chest, png, tiny_bundle
from worker.pipeline.predictor import Predictor
from worker.runtimes.torch import TorchPredictor


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def predictor(tiny: Bundle) -> Predictor:
    return TorchPredictor(tiny, threads=1)


@pytest.fixture(scope="session")
def film() -> bytes:
    return png(chest(3))
