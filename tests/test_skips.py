"""Whoever clones Hilum has no radiographs: tests of them are skipped, a failure only where nothing may be skipped."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import SKIP_FREE


@pytest.mark.parametrize(
    ("asked", "code"), [({}, 0), ({SKIP_FREE: "1"}, 1)], ids=["anywhere", "where nothing may be skipped"]
)
def test_without_radiographs(asked: dict[str, str], code: int) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("HILUM_DATA", SKIP_FREE)} | asked
    command = [sys.executable, "-m", "pytest", "-m", "data", "-n", "2", "tests/training/test_shipped.py"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert ended.returncode == code, ended.stdout
    assert "4 skipped" in ended.stdout
    assert " failed" not in ended.stdout
    assert ended.stdout.count("must not be skipped here") == 4 * code
