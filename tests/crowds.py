"""Many rows at once, put straight into the tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert
from sqlalchemy.orm import Session

from shared import ids
from shared.models import Delivery, Destination, Event


def pile_up(session: Session, webhook_id: str, count: int) -> None:
    """Deliveries to one webhook, all of which have been due for a day."""
    now = datetime.now(UTC)
    common = {"tenant_id": session.get_one(Destination, webhook_id).tenant_id, "created_at": now}
    of_events = [{**common, "id": ids.new("evt"), "type": "job.failed", "payload": {}} for _ in range(count)]
    session.execute(insert(Event), of_events)
    due = {"destination_id": webhook_id, "status": "queued", "due_at": now - timedelta(days=1), "ready_at": now}
    session.execute(insert(Delivery), [{**common, **due, "id": ids.new("dlv"), "event_id": e["id"]} for e in of_events])
