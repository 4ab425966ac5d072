"""Examples of webhooks and deliveries in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from api.examples import JOB_ID

WEBHOOK_ID = "whk_01JDJ5W1M0QZ8N4T7X2B9C3D6F"
DELIVERY_ID = "dlv_01JDJ5W1M0QZ8N4T7X2B9C3D6F"

WEBHOOK: dict[str, Any] = {
    "id": WEBHOOK_ID,
    "url": "https://hooks.example.org/hilum",
    "events": ["job.succeeded", "job.rejected", "job.failed"],
    "description": "the reading room",
    "enabled": True,
    "disabled_because": None,
    "failing_since": None,
    "old_secret_until": None,
    "created_at": "2026-01-05T08:00:00Z",
}
# A secret of zeros: nothing that looks like a real one belongs into a document.
WEBHOOK_WITH_SECRET: dict[str, Any] = {**WEBHOOK, "secret": "whsec_" + "A" * 43 + "="}
WEBHOOK_LIST: dict[str, Any] = {"webhooks": [WEBHOOK]}

DELIVERY: dict[str, Any] = {
    "id": DELIVERY_ID,
    "event": {
        "id": "evt_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
        "type": "job.succeeded",
        "created_at": "2026-01-05T08:30:00.610000Z",
        "data": {"job": JOB_ID},
        "test": False,
    },
    "status": "queued",
    "created_at": "2026-01-05T08:30:00.610000Z",
    "next_attempt_at": "2026-01-05T08:30:06Z",
    "finished_at": None,
    "error": {"code": "unsuccessful", "detail": "The receiver answered 503."},
    "attempts": [
        {
            "number": 1,
            "at": "2026-01-05T08:30:00.700000Z",
            "duration_ms": 41,
            "status": 503,
            "error": "unsuccessful",
            "detail": "The receiver answered 503.",
            "response": "down for maintenance",
        }
    ],
}
DELIVERY_PAGE: dict[str, Any] = {"deliveries": [DELIVERY], "next_cursor": None}


def said(example: dict[str, Any], description: str = "Successful Response") -> dict[str, Any]:
    """The documentation of an answer, with an example of its body."""
    return {"description": description, "content": {"application/json": {"example": example}}}
