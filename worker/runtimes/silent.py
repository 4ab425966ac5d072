"""OpenVINO without its telemetry: the package reports its use over the internet unless its user says no.

A hospital's machine tells nobody what it computes. With the telemetry package absent OpenVINO takes a stub of its own.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes an import fail, by design

import openvino  # noqa: E402

__all__ = ["openvino"]
