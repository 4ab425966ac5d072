"""Rows in the order of an index, and of no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, tuple_


def within(
    found: Any, key: Sequence[Any], above: Sequence[Any], below: Sequence[Any], *, descending: bool = False
) -> Any:
    """Of the select `found`, the rows whose `key` lies strictly between two rows of values, in the order of `key`.

    With `tenant_id = :t ORDER BY id` a planner may as well walk the primary key and skip what is another tenant's: all
    there is, where the tenant has been away for long. This is a range of the index on `key`, whoever is how busy.
    """
    low: ColumnElement[bool] = tuple_(*key) > tuple_(*above)
    high: ColumnElement[bool] = tuple_(*key) < tuple_(*below)
    return found.where(low, high).order_by(*(column.desc() if descending else column for column in key))
