"""Intervals against known cases, coverage and the floor of the calibration error against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from training import chance, metrics
from worker.pipeline.ensemble import softmax, tempered

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 600)
SKILL = softmax(RNG.normal(size=(600, 4)) + 1.2 * np.eye(4)[LABELS])
ALONE = [f"patient {i}" for i in range(600)]


def test_resamples_draw_whole_groups() -> None:
    groups = ["a", "b", "a", "c", "b", "a"]
    weights = chance.resamples(groups, 200)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many groups as there are
    assert weights.std(axis=0).min() > 0
    assert np.array_equal(weights, chance.resamples(groups, 200))


def test_an_interval_of_accuracy_is_that_of_a_binomial() -> None:
    right = (np.arange(600) < 420).astype(float)
    low, high = chance.interval(chance.means(right, chance.resamples(ALONE))) or (0, 0)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 600)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_ten_equal_films_of_a_patient_tell_no_more_than_one() -> None:
    right = np.repeat(np.arange(60) < 42, 10).astype(float)
    together = [f"patient {i // 10}" for i in range(600)]
    wide, narrow = (chance.interval(chance.means(right, chance.resamples(g))) or [0, 0] for g in (together, ALONE))
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(math.sqrt(10), rel=0.1)


def test_figures_of_a_resample_are_those_of_scikit_learn_with_its_weights() -> None:
    weights, said = chance.resamples([f"{i // 3}" for i in range(600)], 20), SKILL.argmax(axis=1)
    found = metrics.rates(chance.tables(LABELS, said, weights, 4))
    ties = np.round(SKILL[:, 1], 1)
    areas = chance.aucs(LABELS == 1, ties, weights)
    for b, weight in enumerate(weights):
        f1 = reference.f1_score(LABELS, said, average="macro", sample_weight=weight)
        assert found["macro_f1"][b] == pytest.approx(f1)
        balanced = reference.balanced_accuracy_score(LABELS, said, sample_weight=weight)
        assert found["balanced_accuracy"][b] == pytest.approx(balanced)
        assert areas[b] == pytest.approx(reference.roc_auc_score(LABELS == 1, ties, sample_weight=weight))
    plain = chance.aucs(LABELS == 1, ties, np.ones((1, 600)))
    assert plain[0] == pytest.approx(metrics.auc(LABELS == 1, ties))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 draws of patients with a true accuracy of 0.8, about 95 % have it in their interval."""
    rng, held = np.random.default_rng(1), 0
    weights = chance.resamples([f"{i // 2}" for i in range(300)], 400)
    for _ in range(200):
        right = np.repeat(rng.random(150) < 0.8, 2).astype(float)
        low, high = chance.interval(chance.means(right, weights)) or (0, 0)
        held += low <= 0.8 <= high
    assert 180 <= held <= 199


def test_no_figure_has_no_interval() -> None:
    assert chance.interval(np.full(5, np.nan)) is None
    assert chance.interval(np.array([np.nan, 0.5, 0.5])) == [0.5, 0.5]


@pytest.mark.parametrize(("calibration", "test", "stated"), [(139, 283, 0.9), (50, 100, 0.8), (9, 40, 0.9)])
def test_coverage_lies_where_a_simulation_puts_it(calibration: int, test: int, stated: float) -> None:
    rng, rank = np.random.default_rng(2), math.ceil((calibration + 1) * stated)
    quantiles = np.sort(rng.random((20_000, calibration)), axis=1)[:, rank - 1]
    counts = rng.binomial(test, quantiles)  # the scores are uniform: this share of them lies below the quantile
    low, high = chance.coverage(calibration, test, stated)
    assert ((counts >= low) & (counts <= high)).mean() >= 0.947
    assert (low, high) == pytest.approx(tuple(np.percentile(counts, (2.5, 97.5))), abs=1)


def test_with_too_few_scores_every_class_is_in_the_set() -> None:
    assert chance.coverage(8, 30, 0.9) == (30, 30)
    assert chance.coverage(0, 30, 0.9) == (30, 30)


def test_the_floor_is_what_a_perfectly_calibrated_model_shows() -> None:
    rng = np.random.default_rng(3)
    p = softmax(rng.normal(size=(400, 4)) * 2)
    draws = [(p.cumsum(axis=1) < rng.random((400, 1))).sum(axis=1) for _ in range(400)]
    errors = [metrics.ece(labels, p) for labels in draws]
    floor = chance.ece_floor(p)
    assert floor["mean"] == pytest.approx(np.mean(errors), rel=0.05)
    assert np.mean(np.array(errors) <= floor["p95"]) == pytest.approx(0.95, abs=0.03)
    boastful = tempered(p, 0.5)
    assert metrics.ece(draws[0], boastful) > 1.5 * chance.ece_floor(boastful)["p95"]
    more = softmax(rng.normal(size=(6400, 4)) * 2)
    assert chance.ece_floor(more, 100)["mean"] == pytest.approx(floor["mean"] / 4, rel=0.15)  # as 1 / sqrt(N)
