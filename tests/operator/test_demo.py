"""`hilum demo`: a stranger's first minute, and what it says when it does not work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders


@pytest.fixture(scope="module")
def out(compiled_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "output"
    shutil.copytree(compiled_home / "cache", out / "home" / "cache")
    return out


def hilum_demo(env: dict[str, str], out: Path, image: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "api.cli", "demo", str(image), "--out", str(out)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_it_shows_the_whole_way(clean_env: dict[str, str], out: Path, tmp_path: Path) -> None:
    image = tmp_path / "chest.png"
    image.write_bytes(builders.png(builders.chest(1)))
    done = hilum_demo(clean_env, out, image)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert re.search(r"\d\.\d\d s  202 accepted and durable: /v1/jobs/job_", said)
    assert re.search(r"succeeded: the diagnosis is durable.*explanation gradcam: succeeded", said, re.DOTALL)
    for word in ("confidence", "margin", "disagreeing", "uncertain", "resnet50", "quality", "stages", "Not a medical"):
        assert word in said
    for name in ("input.png", "lungs.png", "gradcam.png"):
        assert str(out / name) in said
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert not (out / "home" / "up.json").exists()


def test_the_next_one_on_the_same_home_tells_why_a_film_is_refused(
    clean_env: dict[str, str], out: Path, tmp_path: Path
) -> None:
    image = tmp_path / "blank.png"
    image.write_bytes(builders.blank_png(400, 400))
    done = hilum_demo(clean_env, out, image)
    assert done.returncode == 1
    assert "the job was rejected" in done.stdout
    assert "up.log" in done.stdout


def test_a_service_that_does_not_start_is_a_failure_with_its_last_words(
    clean_env: dict[str, str], tmp_path: Path
) -> None:
    image = tmp_path / "chest.png"
    image.write_bytes(b"x")
    done = hilum_demo({**clean_env, "HILUM_BUNDLE": str(tmp_path)}, tmp_path / "out", image)
    assert done.returncode == 1
    assert "no bundle in" in done.stdout
    assert "there is no image" in hilum_demo(clean_env, tmp_path / "out", tmp_path / "none.png").stdout
