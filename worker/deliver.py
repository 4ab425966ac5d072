"""Deliveries: one thread hands out the slots, each delivery is sent in a thread of its own: none waits for another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from shared import deliveries, ledger, logs
from shared.db import reading, transaction
from shared.deliveries import Answer, Parcel
from shared.errors import LeaseLost
from shared.ledger import Claim
from shared.models import Delivery
from worker import send
from worker.lease import HAND_BACK_S
from worker.parts import Parts
from worker.settle import settle

LOOK_S = 1.0  # deliveries become due without a bell: the next try of one that failed
LARGEST_SHARE = 4  # of the slots, one destination holds at most one in so many

log = logs.get("worker.deliver")


@dataclass(eq=False)
class Held:
    """A delivery that is being sent, and the thread that sends it."""

    claim: Claim
    destination_id: str
    lost: bool = False
    thread: threading.Thread | None = field(default=None, repr=False)


class Dispatcher:
    """The slots of one process: `start` after the fork, `stop` before the end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._held: set[Held] = set()
        self._lock = threading.Lock()
        self._stopped, self._ended = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._hand_out, name="deliveries", daemon=True),
            threading.Thread(target=self._renew, name="deliveries-leases", daemon=True),
        ]

    def start(self) -> None:
        """Send whatever is due, from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is not answered in HAND_BACK_S is handed back, to be sent again by another."""
        self._stopped.set()
        self._parts.rung.set()
        self._threads[0].join(HAND_BACK_S)
        until = time.monotonic() + HAND_BACK_S
        for held in self._now_held():
            assert held.thread
            held.thread.join(max(0.0, until - time.monotonic()))
        for held in self._now_held():
            self._hand_back(held)
        self._ended.set()

    def _hand_out(self) -> None:
        parts = self._parts
        while not self._stopped.is_set() and not parts.stop.is_set():
            parts.rung.clear()
            try:
                if not self._fill():
                    parts.rung.wait(LOOK_S)
            except Exception as error:  # whatever it is: nobody else hands out these slots
                _warn("no_deliveries_claimed", error)
                self._stopped.wait(LOOK_S)  # not for a bell: handing back rings one

    def _fill(self) -> bool:
        """Give the free slots to what is due; False when there is nothing, or no slot is free."""
        settings, held = self._parts.settings, self._now_held()
        free, counts = settings.webhook_slots - len(held), Counter(one.destination_id for one in held)
        if free <= 0 or self._parts.draining.is_set():
            return False
        with reading(self._parts.database) as session:
            share = settings.webhook_slots // LARGEST_SHARE
            found = dict(deliveries.ready(session, free, held=counts, share=share))
        if not found:
            return False
        with transaction(self._parts.database) as session:
            claimed = deliveries.claim(session, list(found), lease_s=settings.lease_s)
        failed = [error for claim, parcel in claimed if (error := self._begin(Held(claim, found[claim.id]), parcel))]
        if failed:
            raise failed[0]
        return True

    def _begin(self, held: Held, parcel: Parcel | Answer | None) -> RuntimeError | None:
        """Send in a thread of its own; the system may have no room for one, and then the row is handed back."""
        held.thread = threading.Thread(
            target=self._deliver, args=(held, parcel), name=f"deliver-{held.claim.id}", daemon=True
        )
        try:
            with self._lock:  # who finds it among the held may wait for its thread
                held.thread.start()
                self._held.add(held)
                self._parts.held.add(held.claim.id)
        except RuntimeError as error:
            self._hand_back(held)
            return error
        return None

    def _deliver(self, held: Held, parcel: Parcel | Answer | None) -> None:
        parts, claim = self._parts, held.claim
        try:
            with logs.bind(delivery_id=claim.id, attempt=claim.attempt):
                if parcel is None:
                    return settle(parts, held, partial(deliveries.cancel, claim=claim))
                answer = parcel if isinstance(parcel, Answer) else _sent(parts, parcel)
                settle(parts, held, partial(deliveries.settle, settings=parts.settings, claim=claim, answer=answer))
                log.info("delivered" if answer.error is None else "not_delivered", code=answer.error)
        except Exception:
            log.exception("delivery_not_settled")  # its lease runs out, and it is sent again
        finally:
            with self._lock:
                self._held.discard(held)
                parts.held.discard(claim.id)
            parts.rung.set()

    def _renew(self) -> None:
        while not self._ended.wait(self._parts.settings.renew_s):
            held = {one.claim.id: one for one in self._now_held()}
            if not held:
                continue
            try:
                with transaction(self._parts.database) as session:
                    claims = [one.claim for one in held.values()]
                    lost = ledger.renew_free(session, Delivery, claims, lease_s=self._parts.settings.lease_s)
                for claim in lost:
                    held[claim.id].lost = True  # its answer, when it comes, is not written
            except Exception as error:  # the leases of all hang on this thread
                _warn("leases_not_renewed", error)

    def _hand_back(self, held: Held) -> None:
        try:
            with transaction(self._parts.database) as session:
                deliveries.hand_back(session, held.claim)
        except (LeaseLost, SQLAlchemyError) as error:
            log.info("not_handed_back", row=held.claim.id, error=type(error).__name__)

    def _now_held(self) -> list[Held]:
        with self._lock:
            return list(self._held)


def _warn(event: str, error: Exception) -> None:
    """One line when it is the database's, a traceback when nobody foresaw it."""
    log.warning(event, error=type(error).__name__, exc_info=None if isinstance(error, SQLAlchemyError) else error)


def _sent(parts: Parts, parcel: Parcel) -> Answer:
    """Sign and send now; what nobody foresaw is a failed try like any other."""
    settings = parts.settings
    try:
        headers = {"Content-Type": "application/json", "User-Agent": _user_agent(), **signed(parcel)}
        return send.post(
            parcel.url,
            parcel.body.encode(),
            headers,
            timeout_s=settings.webhook_timeout_s,
            private=settings.webhook_private,
        )
    except Exception as error:
        log.exception("unforeseen")
        return deliveries.unforeseen(datetime.now(UTC), error)


def signed(parcel: Parcel) -> dict[str, str]:
    """The headers of Standard Webhooks 1.0: a signature per live secret over the id, this very second and the body."""
    now = datetime.now(UTC)
    signatures = [Webhook(secret).sign(parcel.event_id, now, parcel.body) for secret in parcel.secrets]
    return {
        "webhook-id": parcel.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _user_agent() -> str:
    try:
        return f"Hilum/{version('hilum')} (webhooks)"
    except PackageNotFoundError:
        return "Hilum (webhooks)"
