"""Figures by source and by population, comparisons, prediction sets, and lungs by the masks' convention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.schemas import Analysis
from training import baselines, figures, metrics, segmentation
from training.answers import Answer, Table
from training.index import Item
from worker.pipeline.ensemble import softmax

CLASSES = ["covid19", "normal", "viral"]
RNG = np.random.default_rng(0)


def item(i: int, label: str, source: str, population: str, split: str = "test") -> Item:
    return Item(f"{i}", label, source, f"p{i // 2}", split, "none", "", "", "", population)


def table(items: list[Item], together: np.ndarray, each: np.ndarray, sets: list[list[str]] | None = None) -> Table:
    """Answers with these probabilities; each prediction set is the top class unless `sets` says otherwise."""
    answers = []
    for i, one in enumerate(items):
        chosen = sets[i] if sets else [CLASSES[together[i].argmax()]]
        said: dict[str, Any] = {"uncertain": bool(i % 2), "prediction_set": chosen, "coverage": 0.9}
        said["uncertain_because"] = ["low_confidence"] if i % 2 else []
        answers.append(Answer(one, Analysis.model_construct(**said)))
    return Table(answers, np.array([CLASSES.index(i.label) for i in items]), together, each.mean(axis=1), each)


@pytest.fixture(scope="module")
def mixed() -> Table:
    """Adults with COVID-19 or normal from two sources; children normal or viral, and one with COVID-19."""
    items = [item(i, CLASSES[i % 2], ("a", "b")[i % 3 == 0], "adult") for i in range(120)]
    items += [item(200 + i, CLASSES[1 + i % 2], "c", "child") for i in range(60)]
    items += [item(400, "covid19", "c", "child")]
    labels = np.array([CLASSES.index(i.label) for i in items])
    good = softmax(RNG.normal(size=(len(items), 3)) + 2.5 * np.eye(3)[labels])
    poor = softmax(RNG.normal(size=(len(items), 3)) + 0.5 * np.eye(3)[labels])
    return table(items, good, np.stack([good, poor], axis=1))


def test_a_part_is_judged_on_its_own_classes(mixed: Table) -> None:
    parts = figures.parts(mixed, CLASSES)
    found = figures.system(parts, mixed.together, CLASSES)
    child = found["per_population"]["child"]
    assert child["classes"] == ["normal", "viral"]  # one film of sixty-one is no class
    assert child["images"] == 60
    rows = slice(120, 180)
    said, labels = mixed.together[rows].argmax(axis=1), mixed.labels[rows]
    assert child["accuracy"] == pytest.approx((said == labels).mean())
    assert child["macro_f1"] == pytest.approx(metrics.f1(labels, said, 3)[1:].mean())
    low, high = child["intervals"]["macro_f1"]
    assert low < child["macro_f1"] < high
    assert set(found["per_source"]) == {"a", "b", "c"}
    whole = found["intervals"]
    assert whole["accuracy"][0] < found["accuracy"] < whole["accuracy"][1]
    for name, one in found["per_class"].items():
        for rate in ("f1", "sensitivity", "specificity", "ppv", "auc"):
            assert whole["per_class"][name][rate][0] <= one[rate] <= whole["per_class"][name][rate][1]


def test_curves_are_those_of_the_figures(mixed: Table) -> None:
    found = figures.ensemble(mixed, figures.parts(mixed, CLASSES), CLASSES)
    for name, curve in found["roc"].items():
        x, y = np.array(curve["false_positive_rate"]), np.array(curve["true_positive_rate"])
        assert len(x) <= figures.CURVE
        assert np.trapezoid(y, x) == pytest.approx(found["per_class"][name]["auc"], abs=0.01)
    chosen = found["selective"]
    assert chosen["aurc"] == pytest.approx(metrics.risk(mixed.labels, mixed.together).mean())
    assert chosen["risk_coverage"]["risk"][-1] == pytest.approx(1 - found["accuracy"])
    assert chosen["accuracy_at_coverage"]["1.0"] == pytest.approx(found["accuracy"])
    assert chosen["sure_share"] == pytest.approx(91 / 181)
    assert chosen["uncertain_because"] == {"low_confidence": 90}
    wrong = mixed.together.argmax(axis=1) != mixed.labels
    assert chosen["accuracy_sure"] == pytest.approx(1 - wrong[::2].mean())


def test_the_ensemble_is_compared_on_equal_resamples(mixed: Table) -> None:
    parts = figures.parts(mixed, CLASSES)
    train = [item(1000 + i, "normal", "abc"[i % 3], ("adult", "child")[i % 3 == 2], "train") for i in range(9)]
    items = [a.item for a in mixed.answers]
    said = baselines.guesses(train, items, CLASSES)
    inside = figures.within(mixed, parts, said, train, CLASSES)
    found = figures.comparisons(mixed, parts, ["good", "poor"], said, inside)
    best = found["best_network"]
    assert best["name"] == "good"
    assert best["macro_f1"] == {"difference": 0, "interval": [0, 0]}  # it is the same network
    above = found["source_majority"]["balanced_accuracy"]
    assert set(above) == {"all", "adult", "child"}
    assert above["adult"]["interval"][0] > 0.2  # half the adults are normal, as the guess says of all
    accuracy = figures.system(parts, mixed.together, CLASSES)["per_population"]["adult"]["balanced_accuracy"]
    assert above["adult"]["difference"] == pytest.approx(accuracy - 0.5)


def test_guesses_of_a_population_come_from_its_own_training_images(mixed: Table) -> None:
    parts = figures.parts(mixed, CLASSES)
    train = [item(1000 + i, "normal", "a", "adult", "train") for i in range(5)]
    train += [item(1100 + i, "viral", "c", "child", "train") for i in range(3)]
    said = baselines.guesses(train, [a.item for a in mixed.answers], CLASSES)
    inside = figures.within(mixed, parts, said, train, CLASSES)
    assert set(said["majority"].argmax(axis=1)) == {1}
    assert set(inside["child"]["majority"].argmax(axis=1)) == {2}  # viral, not normal
    found = figures.rivals(parts, said, inside, CLASSES)
    assert found["majority"]["accuracy"] == pytest.approx((mixed.labels == 1).mean())
    assert found["majority"]["per_population"]["child"]["accuracy"] == 0.5
    inside["child"]["majority"] = mixed.together[parts.populations["child"].rows]
    good = figures.rivals(parts, said, inside, CLASSES)["majority"]["per_population"]["child"]
    assert good["accuracy"] > 0.7  # what is known inside the population is what is judged there


def test_coverage_is_held_against_chance() -> None:
    items = [item(i, CLASSES[i % 2], "a", "adult") for i in range(200)]
    together = np.tile([0.5, 0.3, 0.2], (200, 1))
    # Nine of ten films of COVID-19 have it in their set, and six of ten normal ones.
    sets = [["covid19", "normal"] if i % 20 < (18, 12)[i % 2] else ["viral"] for i in range(200)]
    found = figures.prediction_set(
        table(items, together, together[:, None], sets), CLASSES, {"covid19": 150, "normal": 150}
    )
    covid, normal = found["per_class"]["covid19"], found["per_class"]["normal"]
    assert (covid["coverage"], covid["inside"], covid["calibration_images"]) == (0.9, True, 150)
    assert (normal["coverage"], normal["inside"]) == (0.6, False)
    assert covid["interval"][0] < 0.9 < covid["interval"][1]
    assert found["coverage"] == 0.75
    assert found["sizes"] == {"1": 50, "2": 150}
    assert "viral" not in found["per_class"]


def test_lungs_that_leave_out_the_heart_differ_only_in_its_region() -> None:
    whole, without = np.zeros((2, 100, 120), bool)
    for mask, inner in ((whole, 55), (without, 45)):
        mask[10:90, 15:40] = mask[10:90, 80:105] = True
        mask[45:90, 40:inner] = mask[45:90, 120 - inner : 80] = True
    region = segmentation.heart(whole)
    assert (whole & ~without & ~region).sum() == 0  # all that the conventions differ in lies in the region
    assert not region[:30].any()
    assert region.mean() < 0.4
    found = segmentation.compare(without, whole)
    assert found["elsewhere"] == 1
    assert found["heart"] < found["dice"] < 1
    assert found["found_cover"] < found["true_cover"]
    assert not segmentation.heart(np.zeros((8, 8), bool)).any()
    nothing = segmentation.compare(whole, np.zeros_like(whole))
    assert nothing["dice"] == 0
    assert np.isnan(nothing["true_cover"])


def test_the_summary_of_lungs_is_that_of_its_films() -> None:
    whole = np.zeros((60, 60), bool)
    whole[10:50, 8:25] = whole[10:50, 35:52] = True
    scores = []
    for i in range(20):
        found = whole.copy()
        found[10 : 10 + i] = False
        scores.append((f"patient {i}", segmentation.compare(found, whole)))
    dice = [one["dice"] for _, one in scores]
    said = segmentation.summary(scores)
    assert said["dice"] == pytest.approx(np.mean(dice))
    assert said["lowest"] == min(dice)
    assert said["below_0.9"] == np.mean([d < 0.9 for d in dice])
    assert said["p05"] < said["median"] < said["p95"]
    assert said["interval"][0] < said["dice"] < said["interval"][1]


def test_a_mask_smaller_than_its_film_is_laid_over_it() -> None:
    rows, columns = np.mgrid[:299, :299]
    whole = (rows - 150) ** 2 + (columns - 150) ** 2 < 100**2
    small = whole[np.ix_(np.arange(256) * 299 // 256, np.arange(256) * 299 // 256)]
    assert small.shape == (256, 256)
    assert segmentation.compare(whole, segmentation._fitted(small, whole.shape))["dice"] > 0.98
    assert segmentation._fitted(whole, whole.shape) is whole
