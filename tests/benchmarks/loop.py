"""The baseline of pipeline_efficiency (`python -m tests.benchmarks.loop`): the pipeline, called in a loop.

Loads the networks and the files of a folder, says `ready`, and for every line on its input goes once over all files
and says how many seconds that took and how many were rejected. The line says how to decode: `sandboxed`, as the worker
does, or `plain`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from shared import bundles
from shared.errors import Rejected
from worker.pipeline import decode
from worker.pipeline.analyze import analyze
from worker.runtimes.choose import open_predictor
from worker.sandbox import Sandbox


def main(bundle_root: str, cache: str, threads: str, folder: str) -> None:
    """Answer each line on standard input with one pass."""
    bundle = bundles.read(Path(bundle_root))
    predictor = open_predictor(bundle, cache=Path(cache), threads=int(threads))
    files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    sandbox = Sandbox()
    print("ready", flush=True)
    for line in sys.stdin:
        decoder = sandbox.decode if line.strip() == "sandboxed" else decode.decode
        rejected, began = 0, time.perf_counter()
        for data in files:
            try:
                analyze(data, predictor, bundle, decode=decoder)
            except Rejected:
                rejected += 1
        print(json.dumps({"seconds": time.perf_counter() - began, "rejected": rejected}), flush=True)
    sandbox.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
