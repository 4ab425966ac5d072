"""Logs as JSON lines on standard error; context is bound once, and no line ever holds patient data."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any

import structlog

from shared.settings import Settings

QUIET = (
    "kombu",
    "amqp",
    "httpx",
    "httpcore",
    "uvicorn.access",
    "PIL",
    "pydicom",
    "alembic",
    "celery.app.trace",
    "celery.worker.strategy",
)


def configure(settings: Settings, process: str) -> None:
    """Send every log line of this process, the libraries' too, to standard error as JSON with `process` in it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        lambda _, __, line: {**line, "process": process},  # bound context would not reach the process's threads
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()


def get(name: str) -> Any:
    """The logger called `name`; takes an event and keyword values."""
    return structlog.stdlib.get_logger(name)


def bind(**context: object) -> AbstractContextManager[None]:
    """Add `context` (job_id, request_id) to every line written within the block."""
    return structlog.contextvars.bound_contextvars(**context)
