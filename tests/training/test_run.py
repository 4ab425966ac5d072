"""The whole of `hilum-train` on drawn films: from a folder of images to a released bundle that serves."""

from __future__ import annotations

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared import bundles
from shared.errors import BundleError, Misconfigured
from tests.training.conftest import NAMES
from training import bundle, index, prepare, report, scoring, starts, train
from training import data as batches
from training.answers import Answer, table
from training.run import Run, begin
from worker.pipeline import decode, lungs
from worker.pipeline.analyze import analyze
from worker.runtimes.torch import TorchPredictor


def test_prepared_tensors_are_what_serving_makes(runs: Path, data: Path, configs: Path) -> None:
    items = index.read(runs / "index.csv")
    weights = runs / "lungs" / "lungs.safetensors"
    network = prepare.lungs_network(configs / "lungs.toml", weights)
    how = bundles.Preprocessing.model_validate({})
    pixels = decode.decode((data / items[5].image).read_bytes()).pixels
    found = lungs.find(pixels, prepare.LungsPredictor(network, weights), network, how)
    kept = np.load(runs / "prepared" / "tensors.npy")[5].astype(np.float32) * (how.clip / 127)
    served = lungs.tensor(pixels, found, how)
    assert np.abs(kept - served).max() <= how.clip / 254 + 1e-6
    assert (kept[served == 0] == 0).all()


def test_prepare_goes_on_where_it_stopped(
    runs: Path, data: Path, configs: Path, tmp_path: Path, hilum_train: Callable[..., str]
) -> None:
    whole = prepare.read_rows(runs / "prepared")
    items = index.read(runs / "index.csv")
    weights = runs / "lungs" / "lungs.safetensors"
    network = prepare.lungs_network(configs / "lungs.toml", weights)
    how = bundles.Preprocessing.model_validate({})
    for count in (10, 20):
        some = items[:20]
        prepare.prepare(some, data, network, weights, how, tmp_path, processes=1)
        if count == 10:
            rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
            (tmp_path / "rows.jsonl").write_text("".join(rows[:10]))
    assert prepare.read_rows(tmp_path) == whole[:20]
    other = network.model_copy(update={"threshold": 0.6})
    with pytest.raises(Misconfigured):
        prepare.must_match(tmp_path, other, how)


def test_training_wrote_weights_a_log_and_a_checkpoint(runs: Path) -> None:
    for name in NAMES:
        with (runs / name / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["size"] for row in rows] == ["64", "64", "224", "224"]
        assert float(rows[-1]["progress"]) == 1
        assert float(rows[-1]["learning_rate"]) < 0.2 * max(float(row["learning_rate"]) for row in rows)
        assert (runs / name / f"{name}.safetensors").stat().st_size < 50_000  # half precision


def test_a_training_that_was_stopped_ends_where_the_whole_one_does(
    runs: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, config = index.read(runs / "index.csv"), configs / "first.toml"
    classes = index.classes(items)
    original, calls = scoring.score, []

    def stopping(run: Run, last: bool) -> float:
        calls.append(last)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(run, last)

    monkeypatch.setattr(scoring, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.train(items, runs / "prepared", config, classes, tmp_path)
    path = train.train(items, runs / "prepared", config, classes, tmp_path)
    whole, resumed = load_file(runs / "first" / "first.safetensors"), load_file(path)
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-2, atol=1e-3)


def test_a_teacher_is_learned_from_beside_the_labels(runs: Path, configs: Path, tmp_path: Path) -> None:
    items, classes = index.read(runs / "index.csv"), index.classes(index.read(runs / "index.csv"))
    config = tomllib.loads((configs / "second.toml").read_text(encoding="utf-8")) | {"teacher_architecture": "tiny"}
    run = begin(items, runs / "prepared", config, classes, runs / "second")
    images = run.images(run.fit.at(64)[:6])
    labels = torch.eye(4)[run.fit.labels[:6]]
    taught = train._taught(run, images, labels)
    with torch.no_grad():
        said = starts.finished(runs / "first" / "first.safetensors", "tiny", 4)(images).softmax(dim=1)
    torch.testing.assert_close(taught, (labels + said) / 2, atol=1e-5, rtol=0)
    alone = begin(items, runs / "prepared", config | {"teacher": ""}, classes, runs / "second")
    assert train._taught(alone, images, labels) is labels
    with pytest.raises(Misconfigured, match="train that network first"):
        begin(items, runs / "prepared", config, classes, tmp_path / "second")


def test_minutes_end_a_training_early_with_small_steps(runs: Path, configs: Path, tmp_path: Path) -> None:
    items = index.read(runs / "index.csv")
    config = tmp_path / "long.toml"
    config.write_text((configs / "first.toml").read_text().replace("work = 4.0", "work = 4000.0"))
    train.train(items, runs / "prepared", config, index.classes(items), tmp_path, minutes=0.03)
    rows = list(csv.DictReader((tmp_path / "first.csv").open(encoding="utf-8")))
    assert rows[-1]["size"] == "224"
    assert float(rows[-1]["progress"]) == 1


def test_every_figure_comes_from_the_stored_files(drafted: Path) -> None:
    figures = json.loads((drafted / "metrics.json").read_text(encoding="utf-8"))
    made = bundles.read(drafted)
    assert figures["weights"] == {w.file: w.sha256 for w in made.manifest.files}
    assert figures["lungs"]["all"]["images"] == 8
    assert figures["ensemble"]["images"] + sum(figures["gate"]["codes"].values()) == 8
    assert set(figures["networks"]) == set(NAMES)
    assert set(figures["baselines"]) == {"majority", "source_majority", "silhouette"}
    shares = np.sum(figures["ensemble"]["confusion"], axis=1) / figures["ensemble"]["images"]
    assert min(abs(shares - figures["baselines"]["majority"]["accuracy"])) < 1e-4
    assert np.sum(figures["ensemble"]["confusion"]) == figures["ensemble"]["images"]
    assert figures["strangers"]["tuned/noise"]["refused"] == 12
    assert made.manifest.calibration.temperature != 1
    counted = made.manifest.training_data["calibrated_on"]
    assert set(counted) == set(made.manifest.classes)
    sets = figures["ensemble"]["prediction_set"]["per_class"]
    assert {name: found["calibration_images"] for name, found in sets.items()} == counted
    assert set(made.manifest.calibration.quantiles) == set(made.manifest.classes)


def test_the_release_serves_and_says_what_the_draft_said(
    drafted: Path, runs: Path, data: Path, tmp_path: Path, hilum_train: Callable[..., str]
) -> None:
    said = hilum_train("bundle", "--runs", runs, "--out", tmp_path)
    root = tmp_path / "drawn" / "1.0.0"
    assert str(root) in said.replace("\n", "")
    released, draft = bundles.read(root), bundles.read(drafted)
    figures = json.loads((root / "metrics.json").read_text(encoding="utf-8"))
    assert released.manifest.metrics["macro_f1"] == figures["ensemble"]["macro_f1"]
    assert "esearch" in released.manifest.licence
    assert (root / "LICENCE.txt").is_file()
    card = (root / "model-card.md").read_text(encoding="utf-8")
    shown = [report.with_interval(figures["ensemble"], key) for key in ("accuracy", "balanced_accuracy", "macro_f1")]
    assert "| ensemble | " + " | ".join(shown) + " |" in card
    assert "random weights; beside the labels it learned the answers of first" in card
    assert "CC0" in card
    assert json.loads((root / "audit.json").read_text(encoding="utf-8"))["explained"]["parts"] in card
    assert (root / "report" / "report.html").is_file()
    assert (root / "left-out.csv").read_bytes() == (runs / "left-out.csv").read_bytes()
    assert released.manifest.training_data["fingerprint"] in card
    film = (data / index.read(runs / "index.csv")[0].image).read_bytes()
    one = analyze(film, TorchPredictor(released), released).analysis
    other = analyze(film, TorchPredictor(draft), draft).analysis
    assert one.ensemble == other.ensemble


def test_a_draft_that_was_not_evaluated_is_not_released(drafted: Path, tmp_path: Path) -> None:
    made = bundles.read(drafted)
    bare = bundles.Bundle(root=tmp_path, manifest=made.manifest, sha256=made.sha256)
    with pytest.raises(BundleError, match=r"metrics.json is missing"):
        bundle.release(bare, tmp_path / "out")
    (tmp_path / "metrics.json").write_bytes((drafted / "metrics.json").read_bytes())
    with pytest.raises(BundleError, match=r"audit.json is missing"):
        bundle.release(bare, tmp_path / "out")
    figures = json.loads((drafted / "metrics.json").read_text(encoding="utf-8"))
    figures["weights"]["first.safetensors"] = "0" * 64
    (tmp_path / "metrics.json").write_text(json.dumps(figures), encoding="utf-8")
    with pytest.raises(BundleError, match="other weights"):
        bundle.release(bare, tmp_path / "out")


def test_a_head_of_another_shape_does_not_load(drafted: Path, tmp_path: Path) -> None:
    made = bundles.read(drafted)
    shutil.copytree(drafted, tmp_path, dirs_exist_ok=True)
    network = made.manifest.networks[0]
    state = load_file(tmp_path / network.file)
    for wrong in (
        {**state, "head.weight": state["head.weight"][:3], "head.bias": state["head.bias"][:3]},
        {k.replace("head.", "fc."): v for k, v in state.items()},
        {k: v for k, v in state.items() if k != "head.bias"},
    ):
        save_file({k: v.contiguous() for k, v in wrong.items()}, tmp_path / network.file)
        changed = network.model_copy(update={"sha256": bundles.checksum(tmp_path / network.file)})
        networks = [changed, *made.manifest.networks[1:]]
        altered = bundles.write(tmp_path, made.manifest.model_copy(update={"networks": networks}))
        with pytest.raises(BundleError, match="does not fit"):
            TorchPredictor(altered)


def test_networks_that_say_the_same_about_everything_do_not_pass(drafted: Path, runs: Path, data: Path) -> None:
    made = bundles.read(drafted)
    items = index.read(runs / "index.csv")[:4]
    said = analyze((data / items[0].image).read_bytes(), TorchPredictor(made), made).analysis
    with pytest.raises(BundleError, match="the same for every image"):
        table(made, [Answer(item, said) for item in items])


def test_draws_are_balanced_by_class_and_tempered_by_source(runs: Path) -> None:
    items = [i for i in index.read(runs / "index.csv") if i.split == "train"]
    items = [*items, *(i for i in items if i.label == "normal")]  # twice as many normals
    weights = data_weights(items, 0.0)
    for label in index.classes(items):
        assert sum(w for w, i in zip(weights, items, strict=True) if i.label == label) == pytest.approx(1)
    ones = sum(w for w, i in zip(weights, items, strict=True) if (i.label, i.source) == ("covid19", "one"))
    assert ones == pytest.approx(0.5)  # power 0: both sources alike, whatever their counts


def data_weights(items: list[index.Item], power: float) -> list[float]:
    return batches.balanced(items, power).tolist()


def test_the_view_and_the_sources_left_out_have_commands(
    runs: Path, data: Path, configs: Path, tmp_path: Path, hilum_train: Callable[..., str]
) -> None:
    for name in ("index.csv", "prepared"):
        (tmp_path / name).symlink_to(runs / name)
    common = ("--runs", tmp_path, "--configs", configs)
    hilum_train("view", "--data", data, *common)
    assert (tmp_path / "view" / "view.safetensors").is_file()
    said = hilum_train("leave-one-out", "one", *common)
    assert json.loads(said[said.index("{") :])["sources"]["one"]["without"]
    assert (tmp_path / "leave-one-out" / "one.json").is_file()
