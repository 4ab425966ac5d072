"""The model card: complete, in the words that fit the data, and without a figure that was typed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shared.bundles import Manifest
from tests.training.test_evaluate import Evaluated
from tests.training.test_evaluate import evaluated as evaluated
from training import audit_card, biases, card, report

SECTIONS = (
    "Intended use", "Out of scope", "Networks", "Training images and their licences", "Known biases", "Results",
    "How far to trust an answer", "The quality gate", "Lungs", "Does it read lungs?", "Runtimes", "Limits",
)  # fmt: skip
PACK = {
    "covid19": {"covid19-radiography-db": 8, "covid-cxnet": 2},
    "lung_opacity": {"kermany-guangzhou-paediatric": 6, "nih-chestxray8-subset": 4},
    "normal": {"covid19-radiography-db-rsna": 5, "shenzhen-nlm": 5},
    "viral_pneumonia": {"kermany-guangzhou-paediatric": 10},
}


@pytest.fixture
def manifest(evaluated: Evaluated) -> Manifest:
    """The manifest of the evaluated bundle with the story of a training."""
    story = {
        "fingerprint": "f" * 64,
        "sources": {"one": 30, "three": 28},
        "licences": {"one": "CC BY 4.0", "three": "not stated"},
        "starts": {"resnet50": "weights of a lungs network"},
        "trained": {"resnet50": {"minutes": 12.5, "images_by_size": {"64": 800, "224": 90}, "best_stop_f1": 0.5}},
    }
    return evaluated.bundle.manifest.model_copy(update={"training_data": story})


def test_it_has_every_section_and_the_figures_with_their_intervals(evaluated: Evaluated, manifest: Manifest) -> None:
    page, found = card.card(manifest, evaluated.figures), evaluated.figures
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == list(SECTIONS)
    for name, one in {"ensemble": found["ensemble"], **found["networks"]}.items():
        low, high = one["intervals"]["accuracy"]
        assert f"| {name} | {one['accuracy']:.3f} ({low:.3f} to {high:.3f}) |" in page
    assert "| one | 30 | CC BY 4.0 |" in page
    assert (
        "| resnet50 | tiny | equal | weights of a lungs network | 12.5 | 800 at 64 px, 90 at 224 px | 0.500 |" in page
    )
    assert manifest.intended_use in page
    assert manifest.licence in page
    for code, count in found["gate"]["codes"].items():
        assert f"`{code}` {count}" in page
    for kind in (*found["strangers"], *found["lungs"], *found["ensemble"]["per_source"]):
        assert f"\n| {kind} |" in page


def test_its_tables_have_as_many_cells_in_every_row(evaluated: Evaluated, manifest: Manifest) -> None:
    page = card.card(manifest, evaluated.figures)
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) > 12
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert "\n\n\n" not in page
    assert not re.search(r"[{}]|None|Undefined|nan", page)


def test_no_figure_is_typed(evaluated: Evaluated, manifest: Manifest) -> None:
    """Of figures that are all alike the card knows no other."""
    story = manifest.training_data | {"trained": {}}
    plain = manifest.model_copy(
        update={"training_data": story, "calibration": manifest.calibration.model_copy(update={"temperature": 0.1234})}
    )
    page = card.card(plain, _all(evaluated.figures, 0.1234))
    assert set(re.findall(r"\d+\.\d{3,}", page)) == {"0.123", "0.1234"}
    found = evaluated.figures
    refused = [*found["strangers"].values(), *found["gate"]["per_class"].values()]
    shares = [one["refused"] / one["images"] for one in refused]
    for counts in (*found["shortcuts"]["sources"].values(), *found["shortcuts"]["populations"].values()):
        shares += [count / sum(counts.values()) for count in (0, *counts.values())]
    shares += [0.1234, 1 - 0.1234, *map(float, found["ensemble"]["selective"]["accuracy_at_coverage"])]
    assert set(re.findall(r"\d+\.\d+ %", page)) <= {report.percent(share) for share in shares}


def test_biases_are_told_of_the_data_that_have_them(evaluated: Evaluated) -> None:
    ages = {name: {"child": 3, "adult": 7} for name in PACK}
    short = evaluated.figures["shortcuts"] | {"sources": PACK, "populations": ages}
    said = "\n".join(biases.sentences(evaluated.figures | {"shortcuts": short}))
    for words in (
        "source are confounded", "viral_pneumonia from one source alone", "age go together", "normal 3 of 10 (30.0 %)",
        "Size and compression", "Burned-in marks", "positive PCR", "is a mixture", "Virus against bacteria",
        "Squashed copies", "(AP)", "two conventions", "under two names", "only guessed", "same collections",
    ):  # fmt: skip
        assert words in said
    kaggle = {name: {"covid19-radiography-database": 10} for name in PACK}
    short |= {"sources": kaggle, "populations": {name: {"unknown": 10} for name in PACK}}
    said = "\n".join(biases.sentences(evaluated.figures | {"shortcuts": short}))
    assert "No patients are named" in said
    assert "Burned-in marks" in said
    assert "children" not in said.replace("the children's films", "")
    assert "age go together" not in said


def test_the_audit_is_published_where_there_is_one(
    evaluated: Evaluated, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "was not audited" in card.card(manifest, evaluated.figures)
    monkeypatch.setattr(audit_card, "sections", lambda audit: f"## Does it read lungs?\n\n{audit['words']}")
    page = card.card(manifest, evaluated.figures, {"words": "Hardly."})
    assert "## Does it read lungs?\n\nHardly.\n" in page
    assert "was not audited" not in page


def _all(value: Any, number: float) -> Any:
    """The same figures with `number` for every one that is no count."""
    if isinstance(value, dict):
        return {key: _all(v, number) for key, v in value.items()}
    if isinstance(value, list):
        return [_all(v, number) for v in value]
    return number if isinstance(value, float) else value
