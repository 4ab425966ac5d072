"""GET /: where everything is, as JSON, or as a small page where the client would rather have HTML."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from api.accept import quality
from shared.schemas import DISCLAIMER

router = APIRouter(tags=["service"])

LINKS = {
    "jobs": "/v1/jobs",
    "batches": "/v1/batches",
    "events": "/v1/events",
    "webhooks": "/v1/webhooks",
    "models": "/v1/models",
    "live": "/healthz",
    "ready": "/readyz",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
    "docs": "/docs",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Hilum {version}</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style>
<h1>Hilum {version}</h1>
<p>A chest X-ray goes in, a durable and explained diagnosis comes out.</p>
<ul>{links}</ul>
<p><small>{disclaimer}</small></p>
</html>
"""
CSP = "default-src 'none'; style-src 'unsafe-inline'"


@router.head("/", include_in_schema=False)
@router.get("/", summary="Discovery document")
def root(request: Request, accept: Annotated[str, Header()] = "") -> Response:
    """The discovery document."""
    version = request.app.version
    if quality(accept, "text/html") > quality(accept, "application/json"):
        links = "".join(f'<li><a href="{path}">{name}</a></li>' for name, path in LINKS.items())
        html = PAGE.format(version=version, links=links, disclaimer=DISCLAIMER)
        return HTMLResponse(html, headers={"Vary": "Accept", "Content-Security-Policy": CSP})
    body: dict[str, Any] = {"name": "hilum", "version": version, "links": LINKS, "disclaimer": DISCLAIMER}
    return JSONResponse(body, headers={"Vary": "Accept"})
