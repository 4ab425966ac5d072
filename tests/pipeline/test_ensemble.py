"""The vote: order of the classes, temperature after the mean, doubts and prediction sets."""

from __future__ import annotations

import numpy as np
import pytest

from shared.bundles import Calibration
from shared.errors import BundleError
from worker.pipeline.ensemble import softmax, tempered, vote

CLASSES = ["b", "a", "c"]
LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [1.5, 1.0, 0.0]], np.float32)


def test_the_mean_is_of_probabilities_and_the_temperature_comes_after_it() -> None:
    said = vote(LOGITS, CLASSES, Calibration(temperature=2.0))
    mean = softmax(LOGITS).mean(axis=0)
    root = np.sqrt(mean)  # softmax(log p / 2) is the normalised square root
    np.testing.assert_allclose(said.together, root / root.sum(), rtol=1e-9)
    before = softmax(LOGITS / 2.0).mean(axis=0)
    assert np.abs(said.together - before).max() > 0.01
    np.testing.assert_allclose(said.each, softmax(LOGITS))


def test_each_network_has_its_share_of_the_vote() -> None:
    said = vote(LOGITS, CLASSES, Calibration(votes=[0.5, 0.25, 0.25]))
    each = softmax(LOGITS)
    np.testing.assert_allclose(said.together, 0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2])
    assert said.disagreement == pytest.approx((LOGITS.argmax(axis=1) != said.top).mean())  # heads are still counted
    assert vote(LOGITS, CLASSES, Calibration(votes=[0.0, 1.0, 0.0])).top == 1


def test_the_order_of_the_classes_is_the_given_one() -> None:
    said = vote(LOGITS[1:2], CLASSES, Calibration())
    assert CLASSES[said.top] == "a"
    assert said.confidence == pytest.approx(softmax(LOGITS[1])[1])


def test_margin_and_disagreement() -> None:
    said = vote(LOGITS, CLASSES, Calibration())
    ordered = np.sort(said.together)
    assert said.margin == pytest.approx(ordered[-1] - ordered[-2])
    votes = LOGITS.argmax(axis=1)
    assert said.disagreement == pytest.approx((votes != said.top).mean())


@pytest.mark.parametrize(
    ("calibration", "reasons"),
    [
        (Calibration(), ()),
        (Calibration(min_confidence=0.99), ("low_confidence",)),
        (Calibration(min_margin=0.9), ("small_margin",)),
        (Calibration(max_disagreement=0.1), ("networks_disagree",)),
        (Calibration(quantiles=dict.fromkeys(CLASSES, 0.01)), ("no_class_fits",)),
    ],
)
def test_every_doubt_says_its_name(calibration: Calibration, reasons: tuple[str, ...]) -> None:
    assert vote(LOGITS, CLASSES, calibration).reasons == reasons


def test_the_prediction_set_holds_what_cannot_be_excluded() -> None:
    p = vote(LOGITS, CLASSES, Calibration()).together
    quantiles = {"b": 1 - p[0] + 1e-9, "a": 1 - p[1] - 1e-9}
    said = vote(LOGITS, CLASSES, Calibration(quantiles=quantiles))
    assert said.included == (True, False, True)  # no quantile, no exclusion


def test_a_temperature_of_one_changes_nothing_and_large_logits_overflow_nothing() -> None:
    p = softmax(np.array([1e4, 0.0, -1e4], np.float32))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(tempered(softmax(LOGITS), 1.0), softmax(LOGITS))


@pytest.mark.parametrize("logits", [LOGITS[:, :2], LOGITS[0], np.full((3, 3), np.nan, np.float32)])
def test_logits_of_another_head_are_refused(logits: np.ndarray) -> None:
    with pytest.raises(BundleError):
        vote(logits, CLASSES, Calibration())
