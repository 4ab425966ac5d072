"""GET /health and POST /predict as the first service of this kind answered them, served by the same queue."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, BinaryIO

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from api import intake, waiting
from api.deps import Caller, LegacyCallerDep, Parts, PartsDep, done_by
from api.examples import PREDICT_FORM
from api.problems import documented
from api.uploads import file_of, reading_form
from shared import errors, views
from shared.db import reading
from shared.deeds import By
from shared.errors import Conflict, HilumError, Invalid, Rejected, Unavailable
from shared.schemas import Analysis, Frozen, JobView, Status

router = APIRouter(tags=["legacy"])

# How that service named the classes. The name hangs on the code, never on a position.
NAMES = {
    "covid19": "COVID-19",
    "lung_opacity": "Opacidad Pulmonar",
    "normal": "Normal",
    "viral_pneumonia": "Neumonía",
}
PICTURE = "gradcam.jpg"


class Prediction(Frozen):
    """The answer of /predict."""

    ensemble: dict[str, float] = Field(description="class -> probability of the soft vote")
    per_model: dict[str, dict[str, float]] = Field(description="network -> class -> probability")
    top_class: str
    confidence: float
    margin_top2: float
    uncertain: bool
    model_disagreement: float
    classes: list[str] = Field(description="in the order of the networks' outputs")
    gradcam_jpg_base64: str | None = Field(None, description="only when asked; null when it could not be drawn")


@router.get("/health", summary="Alive, as the first service said it")
async def health() -> dict[str, bool]:
    """Always `{"ok": true}` while the process answers."""
    return {"ok": True}


@router.post(
    "/predict",
    response_model=Prediction,
    response_model_exclude_unset=True,
    summary="Submit and wait, as the first service answered",
    responses=documented(
        errors.Unauthenticated,
        errors.Forbidden,
        errors.TooLarge,
        errors.UnsupportedType,
        errors.Invalid,
        errors.EmptyFile,
        errors.Rejected,
        errors.Conflict,
        errors.Unavailable,
        errors.StorageFull,
    ),
    openapi_extra={"requestBody": PREDICT_FORM},
)
async def predict(
    request: Request,
    caller: LegacyCallerDep,
    parts: PartsDep,
    gradcam: bool = Query(False, description="also accepted as a field of the form"),
) -> Prediction:
    """One image in, its diagnosis out, within 60 s; the job stays readable under /v1/jobs."""
    deadline = asyncio.get_running_loop().time() + parts.settings.max_wait_s
    async with reading_form(request) as form:
        gradcam = _flag(form, gradcam)
        wishes = intake.Wishes(explain=["gradcam"] if gradcam else [], priority="urgent")
        by = done_by(caller, request)
        made = await run_in_threadpool(_accept, parts, caller, by, wishes, file_of(form).file)
    job_id = made.job.view.id
    view = await _diagnosed(parts, caller.tenant_id, job_id, deadline)
    assert view.result is not None
    fields = _named(view.result)
    if gradcam:
        fields["gradcam_jpg_base64"] = await _picture(parts, caller.tenant_id, job_id, deadline)
    return Prediction(**fields)


def _accept(parts: Parts, caller: Caller, by: By, wishes: intake.Wishes, file: BinaryIO) -> intake.Accepted:
    upload = intake.inspect(file, parts.settings.max_upload_bytes)
    return intake.accept(parts, intake.Order(caller, by, wishes, upload))


async def _diagnosed(parts: Parts, tenant_id: str, job_id: str, deadline: float) -> JobView:
    """The succeeded job; every other end is an error that names the job."""
    view = (await waiting.ended(parts, tenant_id, job_id, waiting.remaining_s(deadline))).view
    where = {"headers": _location(job_id), "job": job_id}
    if view.status is Status.SUCCEEDED:
        return view
    if view.status is Status.REJECTED and view.reason:
        raise _rejected(view, where)
    if view.status is Status.FAILED and view.error:
        raise HilumError(view.error.detail, code=view.error.code, **where)
    if view.status is Status.CANCELED:
        raise Conflict("The job was canceled.", code="canceled", **where)
    raise _late(job_id)


async def _picture(parts: Parts, tenant_id: str, job_id: str, deadline: float) -> str | None:
    """The heat map as base64, or None when its explanation ended otherwise than well."""
    found = await run_in_threadpool(waiting.read, parts, tenant_id, job_id)
    while not found.view.explanations["gradcam"].status.terminal:
        left_s = waiting.remaining_s(deadline)
        if left_s <= 0:
            raise _late(job_id)
        found = await waiting.changed(parts, tenant_id, found, left_s)
    if found.view.explanations["gradcam"].status is not Status.SUCCEEDED:
        return None
    return base64.b64encode(await run_in_threadpool(_fetch, parts, tenant_id, job_id)).decode()


def _fetch(parts: Parts, tenant_id: str, job_id: str) -> bytes:
    with reading(parts.database) as session:
        key = views.artifact(session, tenant_id, job_id, PICTURE).key
    return parts.storage.get(key)


def _named(result: Analysis) -> dict[str, Any]:
    """The fields of that service, each class under its old name."""

    def named(probabilities: dict[str, float]) -> dict[str, float]:
        return {NAMES.get(code, code): p for code, p in probabilities.items()}

    return {
        "ensemble": named(result.ensemble),
        "per_model": {network: named(p) for network, p in result.per_model.items()},
        "top_class": NAMES.get(result.top_class, result.top_class),
        "confidence": result.confidence,
        "margin_top2": result.margin_top2,
        "uncertain": result.uncertain,
        "model_disagreement": result.model_disagreement,
        "classes": [NAMES.get(code, code) for code in result.classes],
    }


def _flag(form: FormData, given: bool) -> bool:
    value = form.get("gradcam")
    if value is None:
        return given
    if str(value).lower() not in ("true", "1", "on", "yes", "false", "0", "off", "no", ""):
        raise Invalid("`gradcam` is true or false.")
    return str(value).lower() in ("true", "1", "on", "yes")


def _rejected(view: JobView, where: dict[str, Any]) -> Rejected:
    assert view.reason is not None
    reason = view.reason
    error = Rejected(reason.code, reason.detail, value=reason.value, threshold=reason.threshold)
    error.extra = where
    return error


def _late(job_id: str) -> Unavailable:
    detail = "The answer is not there yet; the job goes on, read it at its Location."
    return Unavailable(detail, code="wait_expired", headers=_location(job_id), job=job_id)


def _location(job_id: str) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job_id}"}
