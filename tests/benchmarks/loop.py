"""The baseline of pipeline_efficiency (`python -m tests.benchmarks.loop`): the pipeline, called in a loop.

Loads the networks and the files of a folder, says `ready`, and for every line on its input goes once over all files
and says how many seconds that took and how many were rejected.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from shared import bundles
from shared.errors import Rejected
from worker.pipeline.analyze import analyze
from worker.runtimes.choose import open_predictor


def main(bundle_root: str, cache: str, threads: str, folder: str) -> None:
    """Answer each line on standard input with one pass."""
    bundle = bundles.read(Path(bundle_root))
    predictor = open_predictor(bundle, cache=Path(cache), threads=int(threads))
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    print("ready", flush=True)
    for _ in sys.stdin:
        rejected, began = 0, time.perf_counter()
        for data in files:
            try:
                analyze(data, predictor, bundle)
            except Rejected:
                rejected += 1
        print(json.dumps({"seconds": time.perf_counter() - began, "rejected": rejected}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
