"""`hilum` with networks that take a fixed time (`python -m tests.benchmarks.fixed worker ...`)."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from api import cli
from worker import parts
from worker.pipeline.predictor import Outputs, Predictor

SECONDS = 1.0


class Fixed:
    """The real tiny networks, which answer no sooner than SECONDS after they were asked."""

    def __init__(self, real: Predictor) -> None:
        self._real = real
        self.runtime = real.runtime

    def segment(self, tensors: np.ndarray) -> np.ndarray:
        """What the real one says."""
        return self._real.segment(tensors)

    def view(self, tensors: np.ndarray) -> np.ndarray:
        """What the real one says."""
        return self._real.view(tensors)

    def classify(self, tensors: np.ndarray) -> Outputs:
        """What the real one says, after a while."""
        until = time.monotonic() + SECONDS
        found = self._real.classify(tensors)
        time.sleep(max(0.0, until - time.monotonic()))
        return found


def command(*arguments: str) -> list[str]:
    """The command line of such a process."""
    return [sys.executable, "-m", "tests.benchmarks.fixed", *arguments]


def main() -> None:
    """Let every predictor that is opened take its time, and be `hilum`."""
    opened = parts.open_predictor

    def slowly(*arguments: Any, **options: Any) -> Fixed:
        return Fixed(opened(*arguments, **options))

    parts.open_predictor = slowly  # type: ignore[assignment]
    cli.main()


if __name__ == "__main__":
    main()
