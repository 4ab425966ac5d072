"""Figures of merit against scikit-learn, calibration against its promises, the sample against its source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from tests.builders import chest
from training import augment, calibrate, metrics, sample
from worker.pipeline.ensemble import softmax, tempered

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 2000)
SKILL = softmax(RNG.normal(size=(2000, 4)) + 1.2 * np.eye(4)[LABELS])
CLASSES = ["a", "b", "c", "d"]


def test_figures_are_those_of_scikit_learn() -> None:
    said = SKILL.argmax(axis=1)
    found = metrics.classification(LABELS, SKILL, CLASSES)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(LABELS, said, average="macro"))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(LABELS, said))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(LABELS, said))
    assert found["weighted_f1"] == pytest.approx(reference.f1_score(LABELS, said, average="weighted"))
    assert found["confusion"] == reference.confusion_matrix(LABELS, said).tolist()
    for k, name in enumerate(CLASSES):
        mine = found["per_class"][name]
        assert mine["auc"] == pytest.approx(reference.roc_auc_score(k == LABELS, SKILL[:, k]))
        assert mine["sensitivity"] == pytest.approx(reference.recall_score(k == LABELS, said == k))
        assert mine["specificity"] == pytest.approx(reference.recall_score(k != LABELS, said != k))
        assert mine["ppv"] == pytest.approx(reference.precision_score(k == LABELS, said == k))
        assert mine["f1"] == pytest.approx(reference.f1_score(k == LABELS, said == k))
    assert metrics.nll(LABELS, SKILL) == pytest.approx(reference.log_loss(LABELS, SKILL))
    ties = np.round(SKILL[:, 0], 1)
    assert metrics.auc(LABELS == 0, ties) == pytest.approx(reference.roc_auc_score(LABELS == 0, ties))


def test_rates_are_means_over_the_classes_that_are_there() -> None:
    labels, said = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 2, 1, 0, 3])
    found = metrics.rates(metrics.confusion(labels, said, 4), over=[0, 1, 3])
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    three = reference.f1_score(labels, said, labels=[0, 1, 3], average="macro")
    assert found["macro_f1"] == pytest.approx(three)
    assert np.isnan(found["sensitivity"][2])
    assert metrics.macro_f1(labels, said, 5) == pytest.approx(three * 3 / 5)  # a class that nobody names counts as 0


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_answers() -> None:
    honest = np.tile([0.75, 0.25], (1000, 1))
    labels = np.array([0, 0, 0, 1] * 250)
    assert metrics.ece(labels, honest) == pytest.approx(0)
    assert metrics.ece(labels, np.tile([1.0, 0.0], (1000, 1))) == pytest.approx(0.25)


def test_bins_of_the_reliability_diagram_add_up_to_the_calibration_error() -> None:
    bins = metrics.reliability(LABELS, SKILL)
    assert sum(b["images"] for b in bins) == len(LABELS)
    assert all(b["from"] <= b["confidence"] <= b["to"] for b in bins)
    total = sum(b["images"] / len(LABELS) * abs(b["accuracy"] - b["confidence"]) for b in bins)
    assert total == pytest.approx(metrics.ece(LABELS, SKILL))


def test_risk_is_the_error_rate_of_the_most_confident() -> None:
    labels = np.array([0, 0, 1, 0])
    said = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])  # right, right, wrong, wrong
    assert metrics.risk(labels, said).tolist() == [0, 1 / 2, 2 / 3, 2 / 4]


def test_a_network_counts_for_as_much_as_it_knows() -> None:
    labels = RNG.integers(0, 4, 4_000)
    truth = np.eye(4)[labels]
    knowing, guessing = (softmax(RNG.normal(size=(4_000, 4)) + skill * truth) for skill in (3.0, 0.5))
    shares = calibrate.votes(labels, np.stack([guessing, knowing], axis=1))
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert shares[1] > 0.7
    alike = calibrate.votes(labels, np.stack([knowing, softmax(RNG.normal(size=(4_000, 4)) + 3.0 * truth)], axis=1))
    assert alike[0] == pytest.approx(0.5, abs=0.1)
    assert calibrate.votes(labels, knowing[:, None]) == [1.0]


def test_the_temperature_undoes_a_known_one() -> None:
    p = softmax(RNG.normal(size=(20_000, 4)) * 1.5)
    labels = (p.cumsum(axis=1) < RNG.random((20_000, 1))).sum(axis=1)  # drawn from p: p is calibrated
    assert calibrate.temperature(labels, tempered(p, 1 / 2.5)) == pytest.approx(2.5, rel=0.1)


def test_prediction_sets_cover_each_class_as_promised() -> None:
    found = calibrate.quantiles(LABELS[:1000], SKILL[:1000], CLASSES, 0.9)
    fresh, labels = SKILL[1000:], LABELS[1000:]
    for k, name in enumerate(CLASSES):
        mine = labels == k
        assert (1 - fresh[mine, k] <= found[name]).mean() == pytest.approx(0.9, abs=0.05)
    assert calibrate.quantiles(LABELS[:8], SKILL[:8], CLASSES, 0.9)["a"] == 1.0  # too few to exclude anything


def test_sure_answers_err_as_rarely_as_asked() -> None:
    least = calibrate.least_confidence(LABELS, SKILL, 0.6)
    confidence, wrong = SKILL.max(axis=1), SKILL.argmax(axis=1) != LABELS
    assert wrong[confidence >= least].mean() <= 0.6 * wrong.mean()
    assert (confidence >= least).mean() > 0.2


def test_a_drawn_film_is_none_of_those_it_was_drawn_from() -> None:
    films = np.stack([chest(seed, (96, 96)).astype(np.float32) / 255 for seed in range(60)])
    film = sample.drawn(films, seed=1)
    assert film.dtype == np.uint8
    assert np.array_equal(film, sample.drawn(films, seed=1))
    assert not np.array_equal(film, sample.drawn(films, seed=2))
    closest = max(np.corrcoef(film.ravel(), other.ravel())[0, 1] for other in films)
    assert 0.8 < closest < 0.995


def test_augmentation_keeps_the_outside_of_the_lungs_empty() -> None:
    torch.manual_seed(0)
    images = torch.zeros(6, 1, 64, 64)
    images[:, :, 16:48, 16:48] = torch.randn(6, 1, 32, 32) + 3
    moved = augment.affine(images, rotation_deg=10, scale=0.2, shift=0.05, flip=True)
    changed = augment.intensity(moved, contrast=0.3, brightness=0.3, noise=0.1)
    assert ((changed != 0) == (moved != 0)).all()
    assert not torch.equal(changed, moved)
    assert augment.crop(images, 40).shape == (6, 1, 40, 40)
    assert augment.crop(images, 64) is images
    lost = augment.erase(images, share=1.0, largest=0.4)
    assert (lost == 0).sum() > (images == 0).sum()


def test_mixup_blends_images_and_targets_alike() -> None:
    torch.manual_seed(0)
    images, targets = torch.arange(4.0).reshape(4, 1, 1, 1), torch.eye(4)
    mixed, blended = augment.mixup(images, targets, 0.4)
    expected = (blended * torch.arange(4.0)).sum(dim=1)
    torch.testing.assert_close(mixed.flatten(), expected)
    assert augment.mixup(images, targets, 0.0)[0] is images
