"""`hilum diagnose` and `hilum bundle`: the service's pipeline without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.bundles import Bundle
from shared.settings import ROOT, Settings, environment
from tests import builders
from worker.pipeline import explain, render

Hilum = Callable[..., subprocess.CompletedProcess[str]]

RESULT = {
    "top_class", "confidence", "margin_top2", "model_disagreement", "uncertain", "prediction_set", "ensemble",
    "per_model", "quality", "lungs", "classes", "runtime", "disclaimer",
}  # fmt: skip


@pytest.fixture
def hilum(tiny: Bundle, compiled_home: Path, tmp_path: Path) -> Hilum:
    """Run a command in a folder of its own."""

    def run(*arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        given = {"home": compiled_home, "bundle": tiny.root, "threads": 1, **changes}
        env = {**environment(Settings.model_validate(given)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "api.cli", *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_file_has_one_line_in_order(hilum: Hilum, tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(builders.png(builders.chest(1)))
    (tmp_path / "film.dcm").write_bytes(builders.dicom(builders.chest(1)))
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.7 nothing to see")
    (tmp_path / "gray.png").write_bytes(builders.png(np.full((300, 300), 99, np.uint8)))
    done = hilum("diagnose", "film.png", "film.dcm", "page.pdf", "./gray.png", "--json")
    assert done.returncode == 0, done.stderr
    film, dicom, pdf, gray = answers(done)
    assert [one["file"] for one in (film, dicom, pdf, gray)] == ["film.png", "film.dcm", "page.pdf", "./gray.png"]
    assert film.keys() >= RESULT
    assert film["top_class"] in builders.CLASSES
    assert sum(film["ensemble"].values()) == pytest.approx(1)
    assert dicom["top_class"] == film["top_class"]
    assert (pdf["top_class"], pdf["reason"]["code"]) == (None, "undecodable")
    assert (gray["top_class"], gray["reason"]["code"]) == (None, "low_contrast")
    assert gray["reason"]["value"] < gray["reason"]["threshold"]
    assert not list(tmp_path.glob("hilum-output"))


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_answered(hilum: Hilum, tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(builders.png(builders.chest(1)))
    (tmp_path / "folder").mkdir()
    done = hilum("diagnose", "missing.png", "folder", "film.png", "--json")
    assert done.returncode == 1
    missing, folder, film = answers(done)
    assert missing["error"]["detail"] == "No such file or directory"
    assert (missing["top_class"], folder["top_class"]) == (None, None)
    assert folder["error"]["code"] == "unreadable_file"
    assert film["top_class"] in builders.CLASSES


def test_pictures_are_written_beside_each_other(hilum: Hilum, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "film.png").write_bytes(builders.png(builders.chest(len(folder))))
    done = hilum("diagnose", "a/film.png", "b/film.png", "--explain", "gradcam", "--json", "--out", "said")
    assert done.returncode == 0, done.stderr
    first, second = answers(done)
    assert first["explanations"]["gradcam"]["class"] == first["top_class"]
    assert Path(first["artifacts"]["gradcam.png"]) == Path("said/film/gradcam.png")
    assert Path(second["artifacts"]["gradcam.png"]) == Path("said/film-2/gradcam.png")
    film = render.read_png((tmp_path / first["artifacts"]["input.png"]).read_bytes())
    assert render.read_png((tmp_path / first["artifacts"]["gradcam.png"]).read_bytes()).shape == (*film.shape, 3)
    cams = explain.read_cams((tmp_path / first["artifacts"]["cams.npz"]).read_bytes())
    assert cams.networks == builders.NETWORKS


def test_people_read_lines_and_the_disclaimer(hilum: Hilum, tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(builders.png(builders.chest(1)))
    (tmp_path / "tiny.png").write_bytes(builders.png(builders.chest(1, (64, 60))))
    done = hilum("diagnose", "film.png", "tiny.png", "missing.png")
    film, small, missing, disclaimer = done.stdout.splitlines()
    assert film.startswith("film.png: ")
    assert "margin" in film
    assert small.startswith("tiny.png: not judged: too_small")
    assert "60" in small
    assert missing == "missing.png: not read: No such file or directory"
    assert "Not a medical device" in disclaimer


def test_what_is_not_offered_is_a_wrong_argument(hilum: Hilum) -> None:
    done = hilum("diagnose", "film.png", "--explain", "lime")
    assert done.returncode == 2
    assert "gradcam" in done.stderr


def test_a_broken_bundle_is_one_sentence(hilum: Hilum, tiny: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in os.listdir(tiny.root):
        (broken / file).write_bytes((tiny.root / file).read_bytes())
    weights = broken / "resnet50.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for command in (("diagnose", "film.png"), ("bundle", "verify"), ("bundle", "compile")):
        done = hilum(*command, bundle=broken)
        assert done.returncode == 1
        assert "was altered" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_bundle_is_verified_compiled_and_compared(hilum: Hilum, tiny: Bundle, tmp_path: Path) -> None:
    verified = hilum("bundle", "verify", str(tiny.root))
    assert verified.returncode == 0, verified.stderr
    assert tiny.identity in verified.stdout
    compiled = hilum("bundle", "compile", home=tmp_path / "other")
    assert sorted(os.listdir(compiled.stdout.strip())) == [
        "classifiers.bin", "classifiers.xml", "lungs.bin", "lungs.xml",
    ]  # fmt: skip
    compared = answers(hilum("bundle", "parity", "--json", "--count", "4", home=tmp_path / "other"))
    assert [(one["runtime"], one["precision"]) for one in compared] == [
        ("torch", "bf16"), ("openvino", "f32"), ("openvino", "bf16"),
    ]  # fmt: skip
    assert compared[1]["max_probability_shift"] < 1e-4
    assert all(one["argmax_agreement"] == 1 for one in compared)
