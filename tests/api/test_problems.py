"""Every error is problem+json with a stable code, and says nothing of its cause that is not the client's."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from api import problems
from shared import errors
from shared.errors import HilumError, Rejected
from shared.schemas import Problem
from shared.settings import ROOT, Settings
from tests.api.conftest import FILM, client_of, serving

Ask = Callable[[httpx.Client], httpx.Response]

CASES: list[tuple[Ask, int, str]] = [
    (lambda c: c.get("/nowhere"), 404, "not_found"),
    (lambda c: c.get("/v1/jobs/"), 404, "not_found"),
    (lambda c: c.get("/v1/jobs/job_x"), 404, "not_found"),
    (lambda c: c.delete("/v1/jobs"), 405, "method_not_allowed"),
    (lambda c: c.put("/predict"), 405, "method_not_allowed"),
    (lambda c: c.post("/v1/jobs", json={}), 422, "invalid_request"),
    (lambda c: c.post("/v1/jobs", files={"file": b""}), 422, "empty_file"),
    (lambda c: c.post("/v1/jobs", files={"file": b"text"}), 415, "unsupported_type"),
    (lambda c: c.post("/v1/jobs", files={"file": bytes(5 * 2**20)}), 413, "too_large"),
    (lambda c: c.post("/v1/jobs/x/explanations", content=bytes(2**17)), 413, "too_large"),
    (lambda c: c.get("/v1/jobs?limit=x"), 422, "invalid_request"),
    (lambda c: c.get("/v1/jobs?cursor=x"), 422, "invalid_cursor"),
    (lambda c: c.get("/v1/jobs", headers={"Authorization": "Bearer no"}), 401, "unauthenticated"),
    (lambda c: c.post("/predict", files={"file": b"text"}), 415, "unsupported_type"),
    (lambda c: c.post("/predict", data={"gradcam": "true"}, files={"x": b"a"}), 422, "missing_file"),
]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_upload_bytes": 3 * 2**20})


@pytest.mark.parametrize(("ask", "status", "code"), CASES)
def test_an_error_is_a_problem(client: httpx.Client, ask: Ask, status: int, code: str) -> None:
    answer = ask(client)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    problem = Problem.model_validate(answer.json())
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem.type == f"urn:hilum:problem:{code}"
    assert problem.status == status
    assert problem.instance == answer.request.url.path
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]
    if status == 405:
        assert answer.headers["Allow"]


def test_wrong_fields_are_named_without_their_values(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", files={"file": FILM}, data={"external_id": "Doe\x01John", "priority": "Doe"})
    assert {error["field"] for error in answer.json()["errors"]} == {"body.external_id", "body.priority"}
    assert "John" not in answer.text


def test_a_file_within_the_form_but_over_the_limit_is_refused(client: httpx.Client) -> None:
    """The form may be a little longer than the file; the file may not."""
    answer = client.post("/v1/jobs", files={"file": FILM + bytes(3 * 2**20)})
    assert (answer.status_code, answer.json()["limit_bytes"]) == (413, 3 * 2**20)


def test_too_much_is_refused_before_it_is_sent(url: str, key: str) -> None:
    """A declared length is enough: the client need not send a byte of it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Authorization: Bearer " + key.encode() + b"\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_request_id_is_kept_when_it_is_harmless(anonymous: httpx.Client) -> None:
    assert anonymous.get("/healthz", headers={"X-Request-Id": "a-b_c.1"}).headers["X-Request-Id"] == "a-b_c.1"
    for wrong in ("a b", "x" * 65, "<script>", '"', ""):
        given = anonymous.get("/healthz", headers={"X-Request-Id": wrong}).headers["X-Request-Id"]
        assert given != wrong
        assert len(given) == 32


def test_what_nobody_foresaw_says_nothing_of_its_cause(
    settings: Settings, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of patient Doe")

    monkeypatch.setattr("shared.views.page", broken)
    with serving(settings) as url, client_of(url, key) as client:
        answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "Doe" not in answer.text
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"]


def test_a_database_that_is_away_is_unavailable(settings: Settings, key: str) -> None:
    away = settings.model_copy(update={"database_url": "postgresql://nobody@127.0.0.1:1/none"})
    with serving(away) as url, client_of(url, key) as client:
        answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_full_disk_under_the_database_is_told_as_such(settings: Settings, key: str) -> None:
    """The file of SQLite may grow no more; PostgreSQL says the same by its code 53100."""

    def full(connection: Any, _: Any) -> None:
        cursor = connection.execute("PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0]}")

    asked = {"files": {"file": ("x.png", FILM, "image/png")}, "data": {"metadata": json.dumps({"a": "b" * 4000})}}
    with serving(settings) as url, client_of(url, key) as client:
        event.listen(Engine, "connect", full)
        try:
            answers = [client.post("/v1/jobs", **asked)]
            while answers[-1].status_code == 202:
                answers.append(client.post("/v1/jobs", **asked))
        finally:
            event.remove(Engine, "connect", full)
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (507, "storage_full")
        assert client.get("/v1/jobs").status_code == 200
    assert len(list((settings.home / "blobs").rglob("input"))) == len(answers) - 1


def _kinds(kind: type[HilumError] = HilumError) -> list[type[HilumError]]:
    return [kind, *(other for child in kind.__subclasses__() for other in _kinds(child))]


def test_every_error_of_the_tree_can_be_told() -> None:
    for kind in _kinds():
        error = kind("code", "detail", value=1.0, threshold=2.0) if issubclass(kind, Rejected) else kind("detail")
        answer = problems.render(error, instance="/x")
        assert answer.status_code == kind.status
        assert kind.__name__ in (errors.__doc__ or "")


def test_the_codes_a_client_can_meet_are_documented() -> None:
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    never_answered = {
        "forbidden",
        "too_many_requests",
        "lease_lost",
        "misconfigured",
        "rejected",
        "conflict",
        "unavailable",
    }
    codes = {kind.code for kind in _kinds()} - never_answered
    assert {code for code in codes if f"`{code}`" not in page} == set()
