"""The limits of the quality gate, from what serving measures on good films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import Rejected
from worker.pipeline import quality

Values = Mapping[str, np.ndarray]


def fitted(films: Sequence[Mapping[str, float]], lost: int, config: dict[str, Any]) -> dict[str, float]:
    """The tightest limits that refuse at most `max_refused` of good films: `films` by what was measured, `lost` others.

    The configured shares are tried from the first to the last. The last is used whatever it refuses.
    """
    values = {name: np.array([film[name] for film in films]) for name in films[0]}
    rule = config["percentiles"]
    for share in rule["shares"]:
        found = limits(values, {**config, "percentiles": {**rule, "share": share}})
        refused = sum(bool(refusal(film, found)) for film in films)
        if refused + lost <= config["max_refused"] * (len(films) + lost):
            break
    return found


def refusal(values: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """The code with which the gate refuses a film of these measured values; empty where it passes."""
    try:
        quality.check(values, limits)
    except Rejected as error:
        return error.code
    return ""


def limits(values: Values, config: dict[str, Any]) -> dict[str, float]:
    """The limits of the gate on `values` float64 [N] by check: fixed ones, percentiles, and bounds.

    A percentile is widened by `slack` of the 5 to 95 percentile range. A bound is a limit with a meaning of its own, a
    probability of one half; where the percentile is wider still, it is the limit.
    """
    rule, found = config["percentiles"], dict(config["limits"])
    for name in set(rule["low"]) & set(values):
        found[f"min_{name}"] = float(np.percentile(values[name], rule["share"])) - _slack(values[name], rule)
    for name in set(rule["high"]) & set(values):
        found[f"max_{name}"] = float(np.percentile(values[name], 100 - rule["share"])) + _slack(values[name], rule)
    for name, bound in config.get("bounds", {}).items():
        check = name.split("_", 1)[1]
        if check in values:
            low = name.startswith("min_")
            tail = float(np.percentile(values[check], rule["share"] if low else 100 - rule["share"]))
            found[name] = min(bound, tail) if low else max(bound, tail)
    return {name: round(value, 4) for name, value in sorted(found.items())}


def _slack(values: np.ndarray, rule: dict[str, Any]) -> float:
    low, high = np.percentile(values, (5, 95))
    return float(high - low) * rule["slack"]
