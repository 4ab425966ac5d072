"""Every error leaves here as RFC 9457 problem+json, with a stable `type` and `code`; no other place writes one."""

from __future__ import annotations

from collections import defaultdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from shared import errors, logs
from shared.db import told
from shared.errors import HilumError, Rejected

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:hilum:problem:"
RETRY_AFTER_S = 5
RESERVED = ("type", "title", "status", "code", "detail", "instance", "headers", "retry_after_s")

log = logs.get("api.problems")


def install(app: FastAPI) -> None:
    """Give `app` its one error handler; what nobody foresaw comes to it through RequestLog."""
    for kind in (HilumError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """The problem that `error` is; what nobody foresaw is a 500 that says nothing of its cause."""
    named = translate(error)
    if named.status >= 500:
        log.error("request_failed", code=named.code, path=request.url.path, exc_info=error)
    return render(named, instance=request.url.path, request_id=request.scope.get("request_id"))


def translate(error: Exception) -> HilumError:
    """Any exception as a HilumError."""
    if isinstance(error, HilumError):
        return error
    if isinstance(error, RequestValidationError):
        return errors.Invalid("; ".join(_sentence(e) for e in error.errors()), errors=_fields(error))
    if isinstance(error, HTTPException):
        return _http(error)
    if isinstance(error, SQLAlchemyError) and isinstance(meant := told(error), HilumError):
        return meant
    return HilumError("Something went wrong on our side; the request id says where to look.")


def render(error: HilumError, *, instance: str, request_id: str | None = None) -> JSONResponse:
    """`error` as a response: the five members of the standard, `code`, and what the error carries besides."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "instance": instance,
    }
    if isinstance(error, Rejected):
        body |= {"value": error.value, "threshold": error.threshold}
    body |= {key: value for key, value in error.extra.items() if key not in RESERVED}
    if request_id:
        body["request_id"] = request_id
    return JSONResponse(body, error.status, headers=_headers(error), media_type=MEDIA_TYPE)


def documented(*kinds: type[HilumError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route in OpenAPI: one entry per status, one example per error."""
    by_status: dict[int, list[type[HilumError]]] = defaultdict(list)
    for kind in kinds:
        by_status[kind.status].append(kind)
    return {status: _documented(found) for status, found in by_status.items()}


def _documented(kinds: list[type[HilumError]]) -> dict[str, Any]:
    content = {
        "schema": {"$ref": "#/components/schemas/Problem"},
        "examples": {kind.code: {"value": _example(kind)} for kind in kinds},
    }
    return {"description": "; ".join(kind.title for kind in kinds), "content": {MEDIA_TYPE: content}}


def _example(kind: type[HilumError]) -> dict[str, Any]:
    return {
        "type": TYPE_PREFIX + kind.code,
        "title": kind.title,
        "status": kind.status,
        "code": kind.code,
        "detail": kind.title + ".",
    }


def _headers(error: HilumError) -> dict[str, str]:
    headers = dict(error.extra.get("headers") or {})  # type: ignore[call-overload]
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (429, 503) or "retry_after_s" in error.extra:
        headers.setdefault("Retry-After", str(error.extra.get("retry_after_s", RETRY_AFTER_S)))
    return headers


def _http(error: HTTPException) -> HilumError:
    """An error of the framework: an unknown path, a wrong method, a body it could not read."""
    known = {400: errors.Invalid, 401: errors.Unauthenticated, 404: errors.NotFound, 413: errors.TooLarge}
    named = known.get(error.status_code, HilumError)(str(error.detail), headers=error.headers or {})
    if type(named) is HilumError:
        status = HTTPStatus(error.status_code)
        named.status, named.title, named.code = status.value, status.phrase, status.name.lower()  # type: ignore[misc]
    return named


def _sentence(found: dict[str, Any]) -> str:
    return f"{_where(found)}: {found['msg']}"


def _where(found: dict[str, Any]) -> str:
    return ".".join(str(part) for part in found["loc"])


def _fields(error: RequestValidationError) -> list[dict[str, str]]:
    """Which fields are wrong and why; never the values, which may name a patient."""
    return [{"field": _where(e), "message": e["msg"]} for e in error.errors()]
