"""Requests that nobody would think of, made from the OpenAPI document, on both databases.

No 500, no 503 but the two that say that no worker runs here, and no answer but those that the document describes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis.checks import CHECKS, load_all_checks

from api.app import create_app
from api.migrate import migrate
from shared import tenants
from shared.bundles import Bundle
from shared.db import open_database, transaction
from shared.settings import Settings
from tests.api.conftest import FILM, Hand, client_of, serving
from tests.api.test_strangers import values_of
from tests.conftest import BOTH, postgres_database

load_all_checks()
HELD = [f"{what}_conformance" for what in ("status_code", "content_type", "response_headers", "response_schema")]
EXAMPLES = 6  # of each operation on each database; a hundred found nothing more
# Nothing but the API runs here: every other 503 is a fault that was taken for something that is away.
AWAY = {("/readyz", "not_ready"), ("/predict", "wait_expired")}
ENDLESS = {"wait", "Prefer"}  # nobody has an hour for this test

described = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
patient = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Target(NamedTuple):
    """A service with one of everything in it."""

    url: str
    key: str
    values: dict[str, str]


@pytest.fixture(scope="module", params=BOTH)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Bundle) -> Iterator[Target]:
    """One for all requests of this file, on SQLite and then on PostgreSQL."""
    home = tmp_path_factory.mktemp("fuzz")
    with ExitStack() as held:
        url = ""
        if request.param == "postgresql":
            url = held.enter_context(postgres_database(request.getfixturevalue("postgres_url")))
        given = Settings(
            home=home, database_url=url, bundle=tiny.root, max_wait_s=0.1, notifier_tick_s=0.02, legacy_open=True
        )
        yield held.enter_context(stocked(given))


@contextmanager
def stocked(given: Settings) -> Iterator[Target]:
    """A service over an empty database, and one of everything in it."""
    migrate(given)
    database = open_database(given)
    with transaction(database) as session:
        key = tenants.ensure_default(session)
        tenant_id = tenants.default_id(session)
    assert key
    with serving(given) as url, client_of(url, key) as owner:
        yield Target(url, key, values_of(owner, Hand(database, given), database, given, tenant_id))
    database.engine.dispose()


def assert_no_fault(answer: Any) -> None:
    """Neither a 500 nor a 503 that nobody can be waiting for."""
    assert answer.status_code != 500, answer.text
    if answer.status_code == 503:
        assert (httpx.URL(answer.request.url).path, answer.json()["code"]) in AWAY, answer.text


def ask(case: schemathesis.Case, target: Target) -> None:
    """Send the request as it was made, but for waits and streams, and hold the answer to the document."""
    for name in ENDLESS:
        case.query.pop(name, None)
        case.headers.pop(name, None)
    case.headers.update({"Accept": "application/json", "Authorization": f"Bearer {target.key}"})
    answer = case.call(base_url=target.url, timeout=30)
    assert_no_fault(answer)
    held: Any = CHECKS.get_by_names(HELD)
    case.validate_response(answer, checks=held)


def test_a_503_is_a_fault_unless_it_says_that_no_worker_is_there(tmp_path: Path) -> None:
    given = Settings(home=tmp_path, database_url="postgresql://127.0.0.1:1/nothing")  # nobody listens there
    with serving(given) as url, client_of(url, "hlm_none") as client:
        assert_no_fault(client.get("/readyz"))
        answer = client.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    with pytest.raises(AssertionError, match="database_unavailable"):
        assert_no_fault(answer)


@described.parametrize()
@patient
def test_no_request_is_answered_in_a_way_that_is_not_written(case: schemathesis.Case, target: Target) -> None:
    ask(case, target)


@described.include(path_regex=r"\{").parametrize()
@patient
def test_nor_where_the_ids_are_those_of_something(case: schemathesis.Case, target: Target) -> None:
    if case.method.upper() != "DELETE":  # the next test needs them still
        case.path_parameters = {name: target.values[name] for name in case.path_parameters or {}}
    ask(case, target)


BOUNDARY = "7MA4YWxkTrZu0gW"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="priority"\r\n\r\nurgent\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="film.png"\r\n'
    "Content-Type: image/png\r\n\r\n"
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


@strategies.composite
def broken(draw: strategies.DrawFn) -> bytes:
    """A form with a film in it, of which a few bytes were changed, added or lost, most of them outside the film."""
    body = bytearray(FORM + FILM + END)
    for _ in range(draw(strategies.integers(1, 4))):
        frame = strategies.one_of(
            strategies.integers(0, len(FORM)), strategies.integers(len(body) - len(END), len(body))
        )
        at = draw(strategies.one_of(frame, strategies.integers(0, len(body))))
        body[at : at + draw(strategies.integers(0, 40))] = draw(strategies.binary(max_size=12))
    return bytes(body)


@given(body=broken())
@settings(patient, max_examples=75)
def test_a_form_is_a_job_or_a_problem(body: bytes, target: Target) -> None:
    with client_of(target.url, target.key) as client:
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        answer = client.post("/v1/jobs", content=body, headers=headers)
        assert answer.status_code in (202, 415, 422), answer.text
        if answer.status_code == 202:
            assert client.get(answer.headers["Location"]).json()["input"]["bytes"] > 0
        else:
            assert answer.headers["content-type"] == "application/problem+json"


LISTS = ["/v1/jobs", "/v1/batches", "/v1/audit", "/v1/keys", "/v1/webhooks/{webhook_id}/deliveries"]


@pytest.mark.parametrize("path", LISTS)
@given(cursor=strategies.one_of(strategies.text(max_size=200), strategies.from_regex(r"[a-z]{3}_[0-9A-Z]{26}")))
@settings(patient, max_examples=30)
def test_a_cursor_is_a_place_or_refused(path: str, cursor: str, target: Target) -> None:
    with client_of(target.url, target.key) as client:
        answer = client.get(path.format_map(target.values), params={"cursor": cursor})
    assert answer.status_code in (200, 422), answer.text
    if answer.status_code == 422:
        assert answer.headers["content-type"] == "application/problem+json"
