"""Examples and request bodies of the OpenAPI document that no signature can express."""

from __future__ import annotations

import json
from typing import Any

from shared.schemas import DISCLAIMER

JOB_ID = "job_01JDJ5W1M0QZ8N4T7X2B9C3D6F"
BUNDLE = "hilum-cxr@1.0.0#3f9d2c81a07e"

RESULT: dict[str, Any] = {
    "top_class": "lung_opacity",
    "confidence": 0.71,
    "margin_top2": 0.52,
    "model_disagreement": 0.0,
    "uncertain": False,
    "uncertain_because": [],
    "prediction_set": ["lung_opacity"],
    "coverage": 0.9,
    "ensemble": {"covid19": 0.19, "lung_opacity": 0.71, "normal": 0.06, "viral_pneumonia": 0.04},
    "per_model": {
        "resnet50": {"covid19": 0.22, "lung_opacity": 0.66, "normal": 0.07, "viral_pneumonia": 0.05},
        "densenet121": {"covid19": 0.18, "lung_opacity": 0.73, "normal": 0.06, "viral_pneumonia": 0.03},
        "efficientnet_b0": {"covid19": 0.17, "lung_opacity": 0.74, "normal": 0.05, "viral_pneumonia": 0.04},
    },
    "quality": {"contrast": 0.41, "chroma": 0.0},
    "lungs": {
        "area_fraction": 0.31,
        "left_fraction": 0.15,
        "right_fraction": 0.16,
        "box": [212, 180, 1804, 1710],
        "mask": "lungs.png",
    },
    "classes": ["covid19", "lung_opacity", "normal", "viral_pneumonia"],
    "bundle": BUNDLE,
    "runtime": {"name": "openvino", "device": "cpu", "precision": "bf16", "threads": 2},
    "stages": [{"name": "decode", "started_s": 0.0}, {"name": "networks", "started_s": 0.21}],
    "disclaimer": DISCLAIMER,
}

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "status": "succeeded",
    "stage": None,
    "priority": "routine",
    "created_at": "2026-01-05T08:30:00Z",
    "due_at": "2026-01-05T09:30:00Z",
    "started_at": "2026-01-05T08:30:00.120000Z",
    "finished_at": "2026-01-05T08:30:00.610000Z",
    "attempt": 1,
    "bundle": BUNDLE,
    "external_id": "study-4711",
    "metadata": {"ward": "3b"},
    "input": {
        "media_type": "image/png",
        "bytes": 1048576,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "result": RESULT,
    "reason": None,
    "error": None,
    "explanations": {},
    "artifacts": {"lungs.png": f"/v1/jobs/{JOB_ID}/artifacts/lungs.png"},
    "disclaimer": DISCLAIMER,
}

PAGE: dict[str, Any] = {"jobs": [JOB], "next_cursor": None}

FILE = {"type": "string", "format": "binary", "description": "PNG, JPEG, TIFF, BMP or DICOM, told by content"}


def _form(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": ["file"], "properties": {"file": FILE, **properties}}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


UPLOAD_FORM = _form(
    {
        "explain": {
            "type": "string",
            "description": "comma-separated; today: gradcam",
            "examples": ["gradcam"],
        },
        "priority": {"type": "string", "enum": ["stat", "urgent", "routine"], "default": "routine"},
        "external_id": {
            "type": "string",
            "maxLength": 128,
            "description": "yours; listed, never interpreted",
        },
        "metadata": {
            "type": "string",
            "description": "a JSON object of at most 4096 bytes; never interpreted",
        },
        "reuse": {
            "type": "boolean",
            "default": False,
            "description": "answer with your own job of the same file, where there is one",
        },
    }
)

PREDICT_FORM = _form({"gradcam": {"type": "boolean", "default": False}})

BATCH: dict[str, Any] = {
    "id": "bat_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "external_id": "night-shift",
    "metadata": {"site": "north"},
    "created_at": "2026-01-05T08:30:00Z",
    "finished_at": None,
    "total": 2,
    "counts": {"queued": 0, "running": 1, "succeeded": 1, "failed": 0, "rejected": 0, "canceled": 0},
    "jobs": "/v1/jobs?batch=bat_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "test": False,
}

BATCH_PAGE: dict[str, Any] = {"batches": [BATCH], "next_cursor": None}

BATCH_ACCEPTED: dict[str, Any] = {
    **BATCH,
    "counts": {**BATCH["counts"], "queued": 2, "running": 0, "succeeded": 0},
    "files": [
        {"name": "ward-3/first.png", "job": JOB_ID},
        {"name": "ward-3/second.dcm", "job": "job_01JDJ5W1M0QZ8N4T7X2B9C3D6G"},
    ],
    "skipped": [{"name": "ward-3/", "reason": "directory"}],
}

_UPLOAD_FIELDS = UPLOAD_FORM["content"]["multipart/form-data"]["schema"]["properties"]

BATCH_FORM = _form(
    {
        **{name: _UPLOAD_FIELDS[name] for name in ("explain", "priority", "metadata")},
        "file": {"type": "array", "items": FILE, "description": "images, or one zip archive of images"},
        "external_id": {
            "type": "string",
            "maxLength": 64,
            "description": "yours; the jobs' own is this, a slash and the name of the file",
        },
    }
)

EVENT: dict[str, Any] = {
    "id": "evt_01JDJ5W2C0QZ8N4T7X2B9C3D6G",
    "type": "job.succeeded",
    "created_at": "2026-01-05T08:30:00.610000Z",
    "data": {"job": JOB_ID},
    "test": False,
}

EVENTS: dict[str, Any] = {"events": [EVENT], "next_after": EVENT["id"], "ended": False}

STREAM = f"id: {EVENT['id']}\nevent: {EVENT['type']}\ndata: {json.dumps(EVENT)}\n\n"
