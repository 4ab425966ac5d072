"""Values that tests of several rooms need."""

from __future__ import annotations

from api.examples import RESULT
from shared.schemas import Analysis


def analysis(**changes: object) -> Analysis:
    """A well-formed diagnosis."""
    return Analysis.model_validate({**RESULT, **changes})
