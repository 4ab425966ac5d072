"""create_app(): the routers, the one error handler, the middleware, and what the process holds open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI

from api import keyuse, problems
from api.deps import open_parts
from api.limits import BodyLimit, RequestLog
from api.routes import (
    audit,
    batches,
    deliveries,
    events,
    explanations,
    health,
    jobs,
    keys,
    legacy,
    models,
    purge,
    root,
    webhooks,
)
from shared import errors, logs
from shared.schemas import DISCLAIMER, Problem
from shared.settings import Settings

ROUTES = (jobs, purge, batches, explanations, events, keys, audit, webhooks, deliveries, models, health, legacy, root)
THROTTLED = problems.documented(errors.Throttled)[errors.Throttled.status]  # wherever a key is needed
DESCRIPTION = f"A chest X-ray goes in, a durable and explained diagnosis comes out.\n\n{DISCLAIMER}"


def application() -> FastAPI:
    """The factory that uvicorn calls: settings from the environment, logs as JSON lines."""
    settings = Settings()
    logs.configure(settings, "api")
    return create_app(settings)


def create_app(settings: Settings) -> FastAPI:
    """The HTTP service for `settings`; nothing is opened before it starts."""
    app = FastAPI(
        title="Hilum",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,  # a redirect would be built from the Host header, and send the key after it
    )
    app.state.settings = settings
    for module in ROUTES:
        app.include_router(module.router)
    app.add_middleware(BodyLimit, upload_bytes=settings.max_upload_bytes, batch_bytes=settings.batch_bytes)
    app.add_middleware(RequestLog)
    problems.install(app)
    _describe_problems(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts = app.state.parts = open_parts(app.state.settings)
    noting = asyncio.create_task(keyuse.noting(parts))
    try:
        yield
    finally:
        await parts.notifier.close()
        await parts.broadcast.close()
        await parts.rates.close()
        noting.cancel()
        await keyuse.note(parts)
        parts.database.engine.dispose()


def _describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document define the Problem that the error responses refer to."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", Problem.model_json_schema(ref_template="#/components/schemas/{model}"))
        for path in document["paths"].values():
            for operation in path.values():
                _drop_framework_error(operation)
                if operation.get("security"):
                    operation["responses"].setdefault("429", THROTTLED)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_framework_error(operation: dict[str, Any]) -> None:
    """FastAPI documents its own shape of a 422 where a route names none; ours is a Problem everywhere."""
    content = operation.get("responses", {}).get("422", {}).get("content", {})
    if content.pop("application/json", None) is not None:
        content[problems.MEDIA_TYPE] = {"schema": {"$ref": "#/components/schemas/Problem"}}


def _version() -> str:
    try:
        return version("hilum")
    except PackageNotFoundError:
        return "0"
