"""The runtime keeps to itself: no telemetry is loaded, whichever way OpenVINO is reached."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from shared.settings import ROOT

LOADED = "import sys; import {}; print([m for m in sys.modules if m.startswith('openvino_telemetry.')])"


@pytest.mark.parametrize("module", ["worker.runtimes.openvino", "worker.runtimes.export"])
def test_the_runtime_calls_nobody(module: str) -> None:
    code = LOADED.format(module)
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_openvino_is_imported_in_one_place() -> None:
    files = [path for room in ("api", "worker", "shared", "training") for path in (ROOT / room).rglob("*.py")]
    found = [p.name for p in files if re.search(r"^\s*(import|from) openvino", p.read_text(encoding="utf-8"), re.M)]
    assert found == ["silent.py"]
