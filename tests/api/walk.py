"""Every route of the service, and a sound request to each, for what must hold of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httpx
from fastapi import FastAPI, routing

from tests.api.conftest import FILM

OPEN = {"/", "/healthz", "/readyz", "/metrics", "/health", "/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
NEVER = "01JDJ5W1M0QZ8N4T7X2B9C3D6F"  # the part of an id behind its prefix, of which nothing was ever made
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs/{job_id}/explanations": {"method": "gradcam"},
    "POST /v1/keys": {"scopes": ["read"]},
    "POST /v1/webhooks": {"url": "https://192.0.2.1/hook"},
    "PATCH /v1/webhooks/{webhook_id}": {"description": "another"},
    "POST /v1/webhooks/{webhook_id}/redeliver": {"since": "2020-01-01T00:00:00Z"},
}


class Operation(NamedTuple):
    """One method of one path, as the router has it, whether or not it is documented."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> list[str]:
        """The names of what the path leaves open."""
        return re.findall(r"{(\w+)", self.path)


def operations(app: FastAPI) -> Iterator[Operation]:
    """Every operation that the service answers, documented or not."""
    for route in routing.iter_route_contexts(app.routes):
        assert route.path is not None, f"{route} is of a kind that this walk does not know"
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield Operation(method, route.path)


def ask(
    client: httpx.Client,
    app: FastAPI,
    operation: Operation,
    values: Mapping[str, str],
    headers: Mapping[str, str] | None = None,
    **query: str,
) -> httpx.Response:
    """A sound request to `operation` with `values` in its path; it asks for JSON, because a stream would not end."""
    body = _body(app, operation)
    sent = {"Accept": "application/json", **(headers or {})}
    return client.request(operation.method, operation.path.format_map(values), params=query, headers=sent, **body)


def never(operation: Operation) -> dict[str, str]:
    """Ids of the right shape of which nothing was ever made, and a file and a method that there may be."""
    known = {"name": "lungs.png", "method": "gradcam"}
    prefix = {"job_id": "job", "batch_id": "bat", "key_id": "key", "webhook_id": "whk", "delivery_id": "dlv"}
    return {name: known.get(name) or f"{prefix.get(name, 'xxx')}_{NEVER}" for name in operation.parameters}


def _body(app: FastAPI, operation: Operation) -> dict[str, Any]:
    """The body of a sound request; AssertionError where one is needed and nobody said what it looks like."""
    wanted = app.openapi()["paths"].get(operation.path, {}).get(operation.method.lower(), {}).get("requestBody", {})
    if "multipart/form-data" in wanted.get("content", {}):
        return {"files": {"file": FILM}}
    if str(operation) in BODIES:
        return {"json": BODIES[str(operation)]}
    example = wanted.get("content", {}).get("application/json", {}).get("example")
    assert example or not wanted.get("required"), f"{operation} needs a body: say in BODIES what a sound one looks like"
    return {"json": example} if example else {}
