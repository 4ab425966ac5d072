"""The broker as a bell: what it is called, how Celery is set, and how a transaction asks for a ring."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu import Connection, Producer, uuid
from sqlalchemy.orm import Session

from shared import logs
from shared.db import BELLS
from shared.settings import Settings

ANALYZE = "analyze"
EXPLAIN = "explain"
DELIVER = "deliver"
QUEUES = (ANALYZE, EXPLAIN, DELIVER)

DEAF_S = 2.0  # after a failed ring the broker is left alone this long; the sweeper rings for what was missed
STEPS = 3  # a ring waits for a free connection, for the connection to be made, and for its answer

log = logs.get("shared.queue")


def task_name(bell: str) -> str:
    """The name of the Celery task that a bell wakes; its queue is called as the bell is."""
    return f"hilum.{bell}"


def celery(settings: Settings) -> Celery:
    """The Celery application of both sides: JSON, no results, early acknowledgement, one message at a time."""
    app = Celery("hilum", broker=settings.broker_url or None, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=ANALYZE,
        task_routes={task_name(bell): {"queue": bell} for bell in QUEUES},
        task_publish_retry=False,
        task_acks_late=False,  # the lease in the row recovers what dies, see docs/architecture.md
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=settings.broker_timeout_s,
        broker_transport_options=_transport(settings, settings.broker_timeout_s),
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


def ringer(settings: Settings) -> Callable[[str], None]:
    """A function that rings a bell: it never raises, and it never blocks longer than the broker's time limit."""
    if not settings.broker_url:
        return _unheard
    app = celery(settings)
    step_s = settings.broker_timeout_s / STEPS
    app.conf.update(broker_connection_timeout=step_s, broker_transport_options=_transport(settings, step_s))
    deaf_until = 0.0
    lock = threading.Lock()

    def ring(bell: str) -> None:
        nonlocal deaf_until
        if time.monotonic() < deaf_until:
            return
        try:
            with app.amqp.producer_pool.acquire(block=True, timeout=step_s) as producer:
                if time.monotonic() >= deaf_until:  # another ring may have failed while this one waited
                    _publish(app, producer, bell)
        except Exception as error:
            # Whatever a transport raises: the row is the truth, and the sweeper rings again.
            with lock:
                deaf_until = time.monotonic() + DEAF_S
            log.warning("bell_not_rung", bell=bell, error=type(error).__name__)

    return ring


def _publish(app: Celery, producer: Producer, bell: str) -> None:
    """Put one message of the bell's task straight into its queue.

    It is what `send_task` would put there, for a third of the time: a bell has no arguments and no route to look up.
    The queue is declared once per connection: RabbitMQ drops a message whose queue no worker has declared yet.
    """
    message = app.amqp.as_task_v2(uuid(), task_name(bell), ignore_result=True)
    producer.publish(
        message.body,
        exchange="",
        routing_key=bell,
        serializer="json",
        headers=message.headers,
        declare=[app.amqp.queues[bell]],
        retry=False,
        **message.properties,
    )


def answers(settings: Settings) -> bool:
    """Whether the broker answers; may take a few times `broker_timeout_s` where packets vanish."""
    if not settings.broker_url:
        return False
    timeout_s = settings.broker_timeout_s
    options = _transport(settings, timeout_s)
    connection = Connection(settings.broker_url, connect_timeout=timeout_s, transport_options=options)
    try:
        with connection:
            connection.ensure_connection(max_retries=1, timeout=timeout_s)
            return connection.default_channel is not None
    except Exception:
        # Each transport raises errors of its own, and all of them mean the same here.
        return False


def ring_after_commit(session: Session, bell: str) -> None:
    """Ask for one ring of `bell` once the session's transaction has committed."""
    session.info.setdefault(BELLS, set()).add(bell)


def _unheard(bell: str) -> None:
    log.debug("no_broker", bell=bell)


def _transport(settings: Settings, timeout_s: float) -> dict[str, Any]:
    """A black-holed broker must not hold a request: kombu's sockets wait for ever unless told."""
    if settings.broker_url.startswith(("amqp", "pyamqp")):
        return {"read_timeout": timeout_s, "write_timeout": timeout_s}
    if not settings.broker_url.startswith(("redis", "valkey")):
        return {}
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "retry_on_timeout": False,
        "max_retries": 0,
        "health_check_interval": 10,
    }
