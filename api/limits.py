"""Pure ASGI around every request: a bound on its body, an id for it in the logs and in the answer, and its metrics."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.rates import RATE_HEADERS
from shared import logs, metrics
from shared.errors import TooLarge

FORM_OVERHEAD_BYTES = 2**20
PLAIN_BODY_BYTES = 2**16
BATCHES = "/v1/batches"  # many files in one form
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logs.get("api.requests")


class BodyLimit:
    """Answers 413 before the first byte is read when the length is declared, and at the limit when it is not."""

    def __init__(self, app: ASGIApp, *, upload_bytes: int, batch_bytes: int) -> None:
        self.app = app
        self.upload_bytes, self.batch_bytes = upload_bytes, batch_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        limit = self._limit(headers, scope["path"])
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            return await self._refuse(limit, scope)(scope, receive, send)
        await self.app(scope, _counted(receive, limit), send)

    def _limit(self, headers: Headers, path: str) -> int:
        if headers.get("content-type", "").lower().startswith("multipart/"):
            return (self.batch_bytes if path == BATCHES else self.upload_bytes) + FORM_OVERHEAD_BYTES
        return PLAIN_BODY_BYTES

    def _refuse(self, limit: int, scope: Scope) -> Response:
        error = TooLarge(_detail(limit), limit_bytes=limit)
        return problems.render(error, instance=scope["path"], request_id=scope.get("request_id"))


class RequestLog:
    """Gives each request an id (the client's, when it is harmless), binds it to the logs, and logs and counts it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else uuid.uuid4().hex
        scope["request_id"] = request_id
        began, status = time.perf_counter(), 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in scope.get(RATE_HEADERS, {}).items():
                    headers.setdefault(name, value)  # an answer that another limit refused speaks of that one
            await send(message)

        with logs.bind(request_id=request_id):
            try:
                await self.app(scope, receive, stamped)
            except Exception as error:
                # Answered here, the answer carries the id; the framework would answer outside of every middleware.
                if status:
                    raise
                await (await problems.answer(Request(scope), error))(scope, receive, stamped)
            finally:
                _write(scope, status or 500, time.perf_counter() - began)


def _counted(receive: Receive, limit: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            # The framework turns any other exception of a body into a 400.
            raise HTTPException(413, _detail(limit))
        return message

    return counted


def _detail(limit: int) -> str:
    return f"The request holds more than {limit} bytes."


def _write(scope: Scope, status: int, elapsed_s: float) -> None:
    """One line and one count per request: the route's template, so that neither holds an id or a query."""
    route = getattr(scope.get("route"), "path", "unmatched")
    # A client may send any word as a method, and every word would be a series of its own.
    method = scope["method"] if scope["method"] in METHODS else "other"
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(elapsed_s)
    level = log.debug if route in ("/healthz", "/readyz", "/metrics", "/health") else log.info
    level("request", method=method, route=route, status=status, elapsed_ms=round(elapsed_s * 1e3, 1))
