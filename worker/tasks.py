"""The table of contents of what workers do: one task per bell. A message carries no work, it wakes who does it."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from shared.queue import ANALYZE, DELIVER, EXPLAIN, task_name
from worker.loop import drain
from worker.parts import Parts


def register(app: Celery, parts: Callable[[], Parts]) -> None:
    """Give `app` its tasks; `parts` is called in the process that runs them."""

    @app.task(name=task_name(ANALYZE))
    def analyze() -> None:
        """Diagnose the jobs that wait, the earliest due first."""
        drain(parts(), ANALYZE)

    @app.task(name=task_name(EXPLAIN))
    def explain() -> None:
        """Draw the explanations that wait, the earliest due first."""
        drain(parts(), EXPLAIN)

    @app.task(name=task_name(DELIVER))
    def deliver() -> None:
        """Wake the dispatcher of this process, which sends what is due."""
        parts().rung.set()
