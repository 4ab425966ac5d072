"""What happened, in the order in which everyone sees it: numbered after the commit, read from there on."""

from __future__ import annotations

from shared.models import TEST, Event
from shared.schemas import EventView


def view(event: Event) -> EventView:
    """The event as a stream, a poll and a webhook tell it."""
    return EventView(
        id=event.id,
        type=event.type,  # type: ignore[arg-type]  # only known types are ever recorded
        created_at=event.created_at,
        data=event.payload,
        test=event.mode == TEST,
    )
