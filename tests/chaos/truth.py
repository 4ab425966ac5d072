"""The truth, kept outside of Hilum: what was accepted, which events came, and what every answer said."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections import Counter, defaultdict
from typing import Any

ENDS = ("job.succeeded", "job.failed", "job.rejected", "job.canceled")
ANSWER = ("status", "top_class", "result", "reason", "error", "bundle", "finished_at")


class Truth:
    """What clients and receivers have seen; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self.accepted: dict[int, str] = {}
        self.last_s = 0.0  # monotonic, of the last acceptance
        self.two_ids: set[int] = set()
        self.refused: list[str] = []
        self.ends: dict[str, set[str]] = defaultdict(set)
        self.seen: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
        self.arrivals: dict[str, Counter[str]] = defaultdict(Counter)
        self.answers: dict[str, set[str]] = defaultdict(set)
        self.to_read: queue.Queue[str] = queue.Queue()

    def accept(self, number: int, job_id: str) -> None:
        """A client saw that its upload `number` is this job."""
        with self._lock:
            if number not in self.accepted:
                self.last_s = time.monotonic()
            if self.accepted.setdefault(number, job_id) != job_id:
                self.two_ids.add(number)
            if job_id not in self._ended:
                self._open.add(job_id)

    def refuse(self, number: int, what: str) -> None:
        """An upload was answered as no upload of the load may be."""
        with self._lock:
            self.refused.append(f"upload {number}: {what}")

    def event(self, source: str, event: dict[str, Any]) -> None:
        """`source` (a receiver, or the stream) has got an event, and said so."""
        name, data = event["type"], event["data"]
        job_id, method = str(data.get("job")), str(data.get("method", ""))
        with self._lock:
            self.arrivals[source][event["id"]] += 1
            self.seen[source].add((name, job_id, method))
            self.ends[f"{job_id} {method}"].add(event["id"])
            if name in ENDS and job_id not in self._ended:
                self._ended.add(job_id)
                self._open.discard(job_id)
                self.to_read.put(job_id)

    def answer(self, job: dict[str, Any]) -> None:
        """A job that has ended, as the API shows it now."""
        said = json.dumps({key: job.get(key) for key in ANSWER}, sort_keys=True)
        with self._lock:
            self.answers[job["id"]].add(hashlib.sha256(said.encode()).hexdigest())

    def count(self) -> int:
        """How many uploads were accepted."""
        with self._lock:
            return len(self.accepted)

    def open(self) -> int:
        """How many accepted jobs have not been seen to end."""
        with self._lock:
            return len(self._open)

    def duplicated(self, number: int) -> bool:
        """Whether an upload became two jobs, or its job ended twice or has two answers."""
        job_id = self.accepted[number]
        twice = any(len(ids) > 1 for key, ids in self._ends_of(job_id))
        return number in self.two_ids or twice or len(self.answers[job_id]) > 1

    def repeated(self) -> int:
        """How many times a receiver got an event that it had already taken."""
        return sum(
            times - 1 for source in self.arrivals if source != STREAM for times in self.arrivals[source].values()
        )

    def _ends_of(self, job_id: str) -> list[tuple[str, set[str]]]:
        keys = (f"{job_id} ", f"{job_id} gradcam")
        return [(key, self.ends[key]) for key in keys if key in self.ends]


STREAM = "stream"
