"""The limits of the gate, the strangers they are measured on, and what the view network and the distances learn."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from shared import bundles
from shared.bundles import Bundle
from tests.builders import chest, tiny_bundle
from training import __main__ as command
from training import drawn, gate, index, ood, strangers, train_view, view_batches
from training.answers import Answer, ask
from worker.pipeline import lungs, view
from worker.pipeline.ood import scores
from worker.runtimes import known
from worker.runtimes.torch import TorchPredictor

RNG = np.random.default_rng(0)
RULE = {"shares": [1.0, 0.5, 0.0], "slack": 0.0, "low": ["contrast"], "high": ["roughness"]}


def films(count: int) -> list[dict[str, float]]:
    return [
        {"contrast": c, "roughness": r, "view_film": 1 - abs(f)}
        for c, r, f in zip(
            RNG.normal(0.7, 0.1, count), RNG.normal(0.1, 0.02, count), RNG.normal(0, 0.1, count), strict=True
        )
    ]


def test_limits_lie_outside_what_most_images_show() -> None:
    values = {"contrast": RNG.normal(0.7, 0.1, 1000), "roughness": RNG.normal(0.1, 0.02, 1000)}
    rule = {**RULE, "share": 1.0}
    found = gate.limits(values, {"limits": {"min_side_px": 96.0}, "percentiles": rule})
    assert set(found) == {"min_side_px", "min_contrast", "max_roughness"}
    assert (values["contrast"] < found["min_contrast"]).mean() == pytest.approx(0.01, abs=0.002)
    wider = gate.limits(values, {"limits": {}, "percentiles": {**rule, "slack": 0.1}})
    assert wider["min_contrast"] < found["min_contrast"]
    assert wider["max_roughness"] > found["max_roughness"]


@pytest.mark.parametrize(("budget", "share"), [(0.03, 1.0), (0.015, 0.5), (0.0, 0.0)])
def test_the_tightest_limits_within_the_budget_are_taken(budget: float, share: float) -> None:
    good = films(2000)
    config = {"limits": {}, "percentiles": RULE, "max_refused": budget}
    found = gate.fitted(good, 0, config)
    values = {name: np.array([film[name] for film in good]) for name in good[0]}
    assert found == gate.limits(values, {"limits": {}, "percentiles": {**RULE, "share": share}})
    assert sum(bool(gate.refusal(film, found)) for film in good) <= budget * len(good) + 2  # rounding of the last film


def test_films_that_were_lost_before_count_as_refused() -> None:
    good = films(2000)
    config = {"limits": {}, "percentiles": RULE, "max_refused": 0.03}
    assert gate.fitted(good, 50, config) != gate.fitted(good, 0, config)


def test_a_bound_holds_unless_good_films_break_it() -> None:
    config = {"limits": {}, "bounds": {"min_view_film": 0.5}, "percentiles": {**RULE, "share": 1.0}}
    assert gate.limits({"view_film": np.linspace(0.9, 1, 100)}, config | RULE_OF_NONE)["min_view_film"] == 0.5
    doubtful = gate.limits({"view_film": np.linspace(0.2, 1, 100)}, config | RULE_OF_NONE)["min_view_film"]
    assert doubtful == pytest.approx(0.208, abs=0.002)


RULE_OF_NONE = {"percentiles": {"share": 1.0, "slack": 0.0, "low": [], "high": []}}


def test_kinds_for_tuning_and_for_testing_share_nothing_and_are_never_the_same_twice() -> None:
    assert not set(drawn.TUNED) & set(drawn.HELD_OUT)
    assert not set(drawn.TUNED.values()) & set(drawn.HELD_OUT.values())
    for kinds in (drawn.TUNED, drawn.HELD_OUT):
        for name, pictures in drawn.pictures(kinds, 3, seed=5).items():
            assert all(picture.dtype == np.uint8 for picture in pictures), name
            assert not np.array_equal(pictures[0], pictures[1]), name
        again = drawn.pictures(kinds, 3, seed=5)
        assert all(np.array_equal(a, b) for name in kinds for a, b in zip(again[name], again[name], strict=True))
    assert strangers.EACH * (len(drawn.TUNED) + len(drawn.HELD_OUT)) > 200


# ---------------------------------------------------------------- the view network


def test_batches_show_what_serving_would_make_of_the_same_picture() -> None:
    film = chest(3).astype(np.float32) / 255
    kept = view_batches.shrunk(film, 64)
    served = lungs.segmentation_tensor(film, 64)
    made = view_batches.standardised(torch.from_numpy(kept)[None, None].float() / 255)[0, 0].numpy()
    assert np.abs(made - served).max() < 0.05


def test_turning_and_inverting_are_numpys_and_leave_the_surroundings_black() -> None:
    film = torch.from_numpy(view_batches.shrunk(chest(3).astype(np.float32) / 255, 64))[None, None].float() / 255
    four = film.repeat(4, 1, 1, 1)
    turned = view_batches.turned(four, torch.arange(4))
    for quarters in range(4):
        np.testing.assert_array_equal(turned[quarters, 0], np.rot90(film[0, 0], quarters))
    negative = view_batches.inverted(four, torch.tensor([True, False, True, False]))
    assert torch.equal(negative[1], four[1])
    assert (negative[0][four[0] == 0] == 0).all()
    inside = four[0] > 0
    torch.testing.assert_close(negative[0][inside], 1 + 1 / 255 - four[0][inside])


def test_a_cropped_film_lacks_one_end_and_stands_in_the_middle() -> None:
    torch.manual_seed(0)
    wide = np.linspace(0.2, 1, 60, dtype=np.float32)[None].repeat(60, axis=0)  # brighter from left to right
    films = torch.from_numpy(view_batches.shrunk(wide, 80))[None].repeat(20, 1, 1)
    cut = view_batches._cropped(films, [0.5, 0.5])
    inside = cut > 0
    shapes = {(int(one.any(dim=1).sum()), int(one.any(dim=0).sum())) for one in inside}
    assert shapes <= {(40, 80), (41, 80), (80, 40), (80, 41)}
    assert all(abs(int(one[:40].sum()) - int(one[40:].sum())) <= 80 for one in inside)
    means = sorted(float(one[20:60, 20:60].float().mean()) / 255 for one in cut)
    assert means[0] == pytest.approx(0.4, abs=0.03)  # without its right end
    assert means[-1] == pytest.approx(0.8, abs=0.03)  # without its left end
    assert any(abs(mean - 0.6) < 0.03 for mean in means)  # without its upper or lower end


def test_ruined_films_are_other_pictures() -> None:
    torch.manual_seed(0)
    films = torch.stack([torch.from_numpy(view_batches.shrunk(chest(s) / np.float32(255), 80)) for s in range(8)])
    ruined = view_batches._ruined(films)
    assert ruined.shape == films.shape
    for before, after in zip(films.float(), ruined.float(), strict=True):
        together = torch.stack([before.flatten(), after.flatten()])
        assert torch.corrcoef(together)[0, 1] < 0.8


@pytest.fixture(scope="module")
def view_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration with little work."""
    text = (command.CONFIGS / "view.toml").read_text(encoding="utf-8")
    for key, value in {
        "widths": "[8, 16, 16]", "input_size": "32", "stored_size": "40", "epochs": "3", "steps": "30",
        "batch_size": "32", "each": "6", "photographs": "4", "learning_rate": "1e-2",
    }.items():  # fmt: skip
        text = re.sub(rf"(?m)^{key} = \S.*$", f"{key} = {value}", text)
    path = tmp_path_factory.mktemp("view") / "view.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def viewed(data: Path, view_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a view network that was trained for a few seconds on the drawn films."""
    folder = tmp_path_factory.mktemp("viewed")
    weights = train_view.train(index.build(data), data, view_config, folder)
    made = tiny_bundle(folder)
    entry = train_view.view_network(view_config, weights)
    return bundles.write(folder, made.manifest.model_copy(update={"view": entry}))


def test_a_short_training_already_tells_the_turn_of_new_films(viewed: Bundle, view_config: Path) -> None:
    predictor = TorchPredictor(viewed, threads=1)
    pixels = [chest(1000 + seed, (200, 180)).astype(np.float32) / 255 for seed in range(8)]
    said = [view.measure(np.rot90(p, k), predictor, viewed.manifest.view) for p in pixels for k in range(4)]
    turns = np.array([values["view_turned_deg"] for values in said]).reshape(8, 4)
    assert (turns == [0, 90, 180, 270]).mean() > 0.7
    counts = train_view.story(view_config, viewed.root / "view.safetensors")["pictures"]
    assert (counts["films"], counts["laterals"]) == (20, 0)
    assert counts["strangers"] == 6 * len(drawn.TUNED) + 3 * 4
    noise = view.measure(RNG.random((200, 180)).astype(np.float32), predictor, viewed.manifest.view)
    assert noise["view_film"] < np.mean([values["view_film"] for values in said])


def test_a_training_of_the_view_goes_on_where_it_stopped(
    data: Path, view_config: Path, viewed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    real = train_view.store

    def dying(state: object, path: Path, done: int) -> None:
        real(state, path, done)  # type: ignore[arg-type]
        epochs.append(done)
        if len(epochs) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_view, "store", dying)
    with pytest.raises(KeyboardInterrupt):
        train_view.train(index.build(data), data, view_config, tmp_path)
    train_view.train(index.build(data), data, view_config, tmp_path)
    assert epochs == [1, 2, 3]


def test_pictures_of_ones_own_are_learned_from(data: Path, view_config: Path, tmp_path: Path) -> None:
    import tomllib

    config = tomllib.loads(view_config.read_text(encoding="utf-8"))
    items = index.build(data)[:3]
    plain = view_batches.pool(items, data, None, config)
    for kind, count in (("lateral", 2), ("shoes", 3)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            (tmp_path / kind / f"{number}.png").write_bytes(strangers.png(chest(number)))
    given = view_batches.pool(items, data, tmp_path, config)
    assert (len(plain.laterals), len(given.laterals)) == (0, 2)
    assert len(given.strangers) == len(plain.strangers) + 3
    batch = view_batches.draw(given, config, 50)
    assert batch.lateral.sum() == 5
    assert (batch.film >= batch.lateral).all()


# ---------------------------------------------------------------- the distances


def test_films_of_training_are_near_and_others_are_far() -> None:
    centres = RNG.normal(size=(3, 40)) * 3
    mixing = RNG.normal(size=(40, 40)) * 0.3
    labels = RNG.integers(0, 3, 600)
    features = (centres[labels] + RNG.normal(size=(600, 40)) @ mixing).astype(np.float32)
    one = ood.gaussians(features, labels)
    fresh = (centres[labels] + RNG.normal(size=(600, 40)) @ mixing).astype(np.float32)
    assert scores([one], [fresh]).mean() == pytest.approx(1, abs=0.25)
    away = fresh + RNG.normal(size=(600, 40)).astype(np.float32) * 3
    assert (scores([one], [away]) > np.percentile(scores([one], [fresh]), 99)).mean() > 0.9


def test_the_model_of_a_draft_is_of_its_training_films_and_computed_once(
    drafted: Path, runs: Path, tmp_path: Path
) -> None:
    made = bundles.read(drafted)
    assert made.manifest.ood is not None
    items = index.read(runs / "index.csv")
    predictor = TorchPredictor(made, threads=1)
    asked: list[int] = []
    real = predictor.classify
    predictor.classify = lambda tensors: asked.append(len(tensors)) or real(tensors)  # type: ignore[method-assign, func-returns-value]
    again = ood.fit(made, predictor, items, runs / "prepared", tmp_path)
    assert again == made.manifest.ood
    assert not asked
    assert len(known.load(made)) == len(made.manifest.networks)


# ---------------------------------------------------------------- the whole gate


@pytest.fixture(scope="module")
def asked(drafted: Path, runs: Path, data: Path) -> tuple[Bundle, list[Answer]]:
    made = bundles.read(drafted)
    test = [item for item in index.read(runs / "index.csv") if item.split == "test"]
    return made, ask(made, TorchPredictor(made, threads=1), test, data, "test")


def test_calibration_leaves_limits_for_all_that_was_measured(drafted: Path) -> None:
    manifest = bundles.read(drafted).manifest
    assert {"max_ood_score", "max_lungs_cropped", "min_exposed", "min_contrast"} <= set(manifest.quality)
    assert manifest.calibration.unusual_ood_score is not None
    assert 0 < manifest.calibration.unusual_ood_score <= manifest.quality["max_ood_score"]
    assert "min_view_film" not in manifest.quality  # this draft has no view network


def test_the_fates_of_strangers_are_told_by_kind(
    asked: tuple[Bundle, list[Answer]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, answers = asked
    monkeypatch.setattr(strangers, "EACH", 2)
    monkeypatch.setattr(strangers, "SAMPLE", 2)
    (tmp_path / "shoes").mkdir()
    (tmp_path / "shoes" / "one.png").write_bytes(strangers.png(drawn.pictures(drawn.TUNED, 1)["noise"][0]))
    (tmp_path / "shoes" / "two.txt").write_bytes(b"no picture at all")
    (tmp_path / "notes.txt").write_text("not a kind")
    found = strangers.fates(made, TorchPredictor(made, threads=1), answers, data, tmp_path)
    expected = {f"tuned/{name}" for name in (*drawn.TUNED, "photographs")} | {f"held out/{n}" for n in drawn.HELD_OUT}
    assert set(found) == expected | {f"films/{name}" for name in strangers.SPOILT} | {"others/shoes"}
    assert found["tuned/noise"] == {"images": 2, "refused": 2, "answers": found["tuned/noise"]["answers"]}
    assert found["others/shoes"]["refused"] == 2
    assert found["others/shoes"]["answers"]["undecodable"] == 1
    assert found["films/unexposed"]["refused"] == found["films/unexposed"]["images"]
