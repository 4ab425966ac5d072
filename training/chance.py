"""What chance alone does to a figure: bootstrap intervals, the floor of the ECE, the spread of coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import betabinom

from training import metrics

RESAMPLES = 1000
SEED = 20261124
LEVEL = 0.95


def resamples(groups: Sequence[str], count: int = RESAMPLES) -> np.ndarray:
    """How often each of N images is in each bootstrap resample: float64 [count, N].

    Whole groups (patients) are drawn, because films of one patient are not independent (cluster bootstrap).
    """
    names, which = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    return drawn[:, which].astype(np.float64)


def interval(samples: np.ndarray) -> list[float] | None:
    """The middle 95 % of a figure over its resamples float64 [B]; None where no resample has the figure."""
    known = samples[~np.isnan(samples)]
    if not known.size:
        return None
    return [float(v) for v in np.percentile(known, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))]


def tables(labels: np.ndarray, said: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """The confusion table float64 [B, K, K] of every resample, whose weights are [B, N]."""
    cells = np.eye(classes * classes)[labels * classes + said]
    return (weights @ cells).reshape(-1, classes, classes)


def aucs(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area under the ROC curve float64 [B] in every resample of weights [B, N]; NaN without both classes."""
    order = np.argsort(scores, kind="stable")
    ranked, positive, weights = scores[order], labels[order], weights[:, order]
    below = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(weights * ~positive, axis=1, out=below[:, 1:])
    mine = ranked[positive]
    first, last = np.searchsorted(ranked, mine, "left"), np.searchsorted(ranked, mine, "right")
    beaten = (below[:, first] + below[:, last]) / 2  # ties count half
    with np.errstate(invalid="ignore"):
        return (beaten * weights[:, positive]).sum(axis=1) / (weights[:, positive].sum(axis=1) * below[:, -1])


def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean float64 [B] of values float [N] in every resample."""
    with np.errstate(invalid="ignore"):
        return weights @ values / weights.sum(axis=1)


def ece_floor(probabilities: np.ndarray, count: int = RESAMPLES) -> dict[str, float]:
    """The calibration error that a perfectly calibrated model with these probabilities [N, K] shows by chance alone.

    Labels are drawn from the probabilities; `mean` is the error to expect, `p95` is exceeded once in twenty times.
    """
    confidence = probabilities.max(axis=1)
    right = np.random.default_rng(SEED).random((count, len(confidence))) < confidence
    errors = np.abs((right - confidence) @ metrics.in_bins(confidence)).sum(axis=1) / len(confidence)
    return {"mean": float(errors.mean()), "p95": float(np.percentile(errors, 100 * LEVEL))}


def coverage(calibration: int, test: int, stated: float) -> tuple[int, int]:
    """Between which counts of `test` images a split-conformal set holds the truth, in 95 % of calibrations and tests.

    With n calibration scores and the quantile of rank k = ceil((n + 1) * stated) the count is beta-binomial
    (test, k, n + 1 - k) (Vovk 2012; Angelopoulos and Bates 2023, appendix C). With too few scores nothing is excluded.
    """
    rank = math.ceil((calibration + 1) * stated)
    if rank > calibration:
        return test, test
    low, high = betabinom.ppf((0.5 - LEVEL / 2, 0.5 + LEVEL / 2), test, rank, calibration + 1 - rank)
    return int(low), int(high)
