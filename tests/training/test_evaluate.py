"""`evaluate` on drawn films: metrics.json, the report beside it, and that both come from the stored bundle alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared import bundles
from shared.bundles import Bundle
from tests.builders import tiny_bundle
from training import answers, evaluate, index, precision, prepare, report, strangers
from training.index import Item
from worker.runtimes.torch import TorchPredictor

PLOTS = ("confusion", "learning", "lungs", "prediction-sets", "reliability", "risk-coverage", "roc", "sources")
LOG = "round,progress,size,images,minutes,learning_rate,loss,stop_f1\n1,0.5,64,8,1,1,1.2,0.4\n2,1.0,224,8,1,1,0.9,0.6\n"


@dataclass(frozen=True)
class Evaluated:
    """A bundle that was evaluated, with all that it takes to do it again."""

    bundle: Bundle
    items: list[Item]
    root: Path
    prepared: Path
    runs: Path
    figures: dict[str, Any]

    def again(self, **others: Any) -> dict[str, Any]:
        """The figures of a second evaluation."""
        predictor = TorchPredictor(self.bundle)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(strangers, "EACH", 2)  # pictures of a kind; the others would show nothing else
            return evaluate.evaluate(self.bundle, predictor, self.items, self.root, self.prepared, **others)


@pytest.fixture(scope="session")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """A tiny bundle evaluated on the drawn films; those of the sources one and two are said to be of adults."""
    if data not in _evaluated:
        _evaluated[data] = _evaluate(data, tmp_path_factory.mktemp("evaluated"))
    return _evaluated[data]


_evaluated: dict[Path, Evaluated] = {}  # once for all modules that import the fixture


def _evaluate(data: Path, folder: Path) -> Evaluated:
    made = tiny_bundle(folder / "bundle")
    ages = {"one": "adult", "two": "adult", "three": "child"}
    items = [replace(item, population=ages[item.source]) for item in index.build(data)]
    manifest, prepared = made.manifest, folder / "prepared"
    prepare.prepare(
        items, data, manifest.lungs, made.path(manifest.lungs), manifest.preprocessing, prepared, processes=1
    )
    for network in manifest.networks:
        path = folder / "runs" / network.name / f"{network.name}.csv"
        path.parent.mkdir(parents=True)
        path.write_text(LOG, encoding="utf-8")
    first = Evaluated(made, items, data, prepared, folder / "runs", {})
    return replace(first, figures=first.again(reference=TorchPredictor(made), runs=folder / "runs"))


def test_metrics_json_holds_what_evaluate_returns(evaluated: Evaluated) -> None:
    text = (evaluated.bundle.root / evaluate.METRICS).read_text(encoding="utf-8")
    assert json.loads(text) == evaluated.figures
    assert max(len(line) for line in text.splitlines()) < 2000  # a curve to a line
    assert len(text.splitlines()) < 4000
    manifest = evaluated.bundle.manifest
    assert evaluated.figures["weights"] == {w.file: w.sha256 for w in manifest.files}
    assert set(evaluated.figures["networks"]) == {network.name for network in manifest.networks}
    assert set(evaluated.figures["baselines"]) == {"majority", "source_majority", "silhouette"}


def test_evaluating_twice_gives_the_same_metrics(evaluated: Evaluated) -> None:
    path = evaluated.bundle.root / evaluate.METRICS
    first = path.read_bytes()
    evaluated.again(reference=TorchPredictor(evaluated.bundle))
    assert path.read_bytes() == first


def test_every_image_is_counted_once(evaluated: Evaluated) -> None:
    found, test = evaluated.figures, [i for i in evaluated.items if i.split == "test"]
    ensemble, gate = found["ensemble"], found["gate"]
    assert gate["images"] == len(test)
    assert ensemble["images"] + sum(gate["codes"].values()) == len(test)
    assert np.sum(ensemble["confusion"]) == ensemble["images"]
    assert sum(one["images"] for one in gate["per_class"].values()) == len(test)
    assert sum(one["images"] for one in gate["per_source"].values()) == len(test)
    for key in ("per_source", "per_population"):
        assert sum(one["images"] for one in ensemble[key].values()) == ensemble["images"]
    assert set(ensemble["per_population"]) == {"adult", "child"}
    assert found["lungs"]["all"]["images"] == len(test)
    assert sum(found["shortcuts"]["populations"]["covid19"].values()) == len(evaluated.items) / 4
    assert found["shortcuts"]["image_size"]["accuracy"] == 0.25  # all films are of one size


def test_guesses_among_adults_are_made_from_adults(evaluated: Evaluated) -> None:
    """COVID-19 and opacity are the adults' classes here: a guess from all films could name one of the children's."""
    one = evaluated.figures["baselines"]["majority"]["per_population"]["adult"]
    assert set(one["classes"]) == {"covid19", "lung_opacity"}
    assert one["balanced_accuracy"] == 0.5


def test_calibration_images_are_those_that_the_gate_let_pass(evaluated: Evaluated) -> None:
    bundle, rows = evaluated.bundle, prepare.read_rows(evaluated.prepared)
    val = {i.id: i.label for i in evaluated.items if i.split == "val"}
    answered = Counter(val[row.id] for row in rows if row.id in val and not row.refused)
    counts = evaluate.calibrated_on(bundle, evaluated.items, evaluated.prepared)
    assert counts == dict(answered)
    least = float(np.median([row.values["contrast"] for row in rows if row.id in val]))
    strict = bundle.manifest.model_copy(update={"quality": {"min_contrast": least}})
    fewer = evaluate.calibrated_on(bundle.model_copy(update={"manifest": strict}), evaluated.items, evaluated.prepared)
    assert 0 < sum(fewer.values()) < sum(counts.values())
    recorded = bundle.manifest.model_copy(update={"training_data": {"calibrated_on": {"normal": 7}}})
    told = bundle.model_copy(update={"manifest": recorded})
    assert evaluate.calibrated_on(told, evaluated.items, evaluated.prepared) == {"normal": 7}


def test_two_runtimes_are_compared_on_the_same_films(evaluated: Evaluated) -> None:
    same = evaluated.figures["runtimes"]
    assert same["argmax_agreement"] == same["gate_agreement"] == 1
    assert same["max_shift"] == 0
    assert same["default"]["macro_f1"] == same["reference"]["macro_f1"] == evaluated.figures["ensemble"]["macro_f1"]
    assert same["default"]["runtime"]["precision"] == "f32"
    made, test = evaluated.bundle, [i for i in evaluated.items if i.split == "test"]
    one, other = TorchPredictor(made), TorchPredictor(made, precision="bf16")
    coarse = precision.compare(made, one, answers.ask(made, one, test, evaluated.root, "one"), other, evaluated.root)
    assert 0 < coarse["mean_shift"] <= coarse["max_shift"] < 0.1
    assert coarse["reference"]["runtime"]["precision"] == "bf16"


def test_the_report_shows_the_figures_and_needs_no_other_file(evaluated: Evaluated) -> None:
    folder, found = evaluated.bundle.root / evaluate.REPORT, evaluated.figures
    report.write(evaluated.bundle, found, folder, evaluated.runs)
    page = (folder / report.PAGE).read_text(encoding="utf-8")
    assert evaluated.bundle.identity in page
    for system in (found["ensemble"], *found["networks"].values(), *found["baselines"].values()):
        low, high = system["intervals"]["macro_f1"]
        assert f"{system['macro_f1']:.3f} ({low:.3f} to {high:.3f})" in page
    for one in (*found["ensemble"]["per_class"].values(), *found["ensemble"]["per_source"].values()):
        assert str(one["images"]) in page
    assert f"{found['ensemble']['ece_floor']['p95']:.3f}" in page
    assert len(re.findall(r'src="data:image/png;base64,', page)) == len(PLOTS)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(PLOTS)
    for path in folder.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 250
        assert 0.005 < (pixels < 200).mean() < 0.9  # something is drawn


def test_the_text_report_is_that_of_scikit_learn(evaluated: Evaluated) -> None:
    text = (evaluated.bundle.root / evaluate.REPORT / report.TEXT).read_text(encoding="utf-8")
    found = evaluated.figures["ensemble"]
    first = text.split("\n\nresnet50")[0]
    for name, one in found["per_class"].items():
        row = [float(x) for x in re.search(rf"^\s*{name}\s+(.*)$", first, re.MULTILINE)[1].split()]  # type: ignore[index]
        assert row == pytest.approx([one["ppv"] or 0, one["sensitivity"], one["f1"] or 0, one["images"]], abs=1e-4)
    macro = [float(x) for x in re.search(r"macro avg\s+(.*)$", first, re.MULTILINE)[1].split()]  # type: ignore[index]
    assert macro[1] == pytest.approx(found["balanced_accuracy"], abs=1e-4)
    assert all(name in text for name in evaluated.figures["networks"])


def test_a_training_without_a_log_has_no_learning_curve(evaluated: Evaluated, tmp_path: Path) -> None:
    assert report.logs(evaluated.bundle, tmp_path) == {}
    path = tmp_path / "resnet50" / "resnet50.csv"
    path.parent.mkdir()
    path.write_text("epoch,accuracy\n1,0.5\n", encoding="utf-8")
    assert report.logs(evaluated.bundle, tmp_path) == {}
    path.write_text(LOG, encoding="utf-8")
    assert [row["stop_f1"] for row in report.logs(evaluated.bundle, tmp_path)["resnet50"]] == [0.4, 0.6]


def test_the_summary_is_of_these_figures(evaluated: Evaluated) -> None:
    short, ensemble = evaluate.summary(evaluated.figures), evaluated.figures["ensemble"]
    assert short["macro_f1"] == ensemble["macro_f1"]
    assert short["intervals"]["accuracy"] == ensemble["intervals"]["accuracy"]
    assert short["children_macro_f1"] == ensemble["per_population"]["child"]["macro_f1"]
    assert short["adults_balanced_accuracy"] == ensemble["per_population"]["adult"]["balanced_accuracy"]
    assert json.loads(json.dumps(short)) == short
    stored = bundles.write(evaluated.bundle.root, evaluated.bundle.manifest.model_copy(update={"metrics": short}))
    assert stored.manifest.metrics == short
    bundles.write(evaluated.bundle.root, evaluated.bundle.manifest)
