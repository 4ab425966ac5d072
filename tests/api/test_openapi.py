"""The OpenAPI document: sound, complete, and with examples that are true of their own schemas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from api.app import create_app
from shared.schemas import EventPage, JobPage, JobView, Problem
from shared.settings import Settings

Node = Any


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document; a warning while it is made (such as an operation id given twice) is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return create_app(Settings(home=tmp_path_factory.mktemp("home"))).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def walk(node: Node) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def test_it_names_the_service_and_says_what_it_is_not(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "Hilum"
    assert re.match(r"\d", document["info"]["version"])
    assert "Not a medical device" in document["info"]["description"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = [node["$ref"] for node in walk(document) if isinstance(node.get("$ref"), str)]
    assert len(found) > 20
    for reference in found:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def test_every_operation_is_described_and_named_once(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)
        declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)


def test_every_protected_operation_says_that_a_key_is_needed(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for method, path, operation in operations(document):
        assert bool(operation.get("security")) == (path.startswith("/v1/") or path == "/predict"), (method, path)
        if operation.get("security"):
            assert {"401", "403"} <= set(operation["responses"]), (method, path)


def test_uploads_are_forms_with_a_file(document: dict[str, Any]) -> None:
    for path in ("/v1/jobs", "/predict"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert schema["required"] == ["file"]
        assert schema["properties"]["file"]["format"] == "binary"


def test_examples_are_true_of_their_schemas(document: dict[str, Any]) -> None:
    kinds: dict[str, type[BaseModel]] = {
        "JobView": JobView,
        "JobPage": JobPage,
        "EventPage": EventPage,
        "Problem": Problem,
    }
    checked: dict[str, int] = dict.fromkeys(kinds, 0)
    for node in walk(document["paths"]):
        reference = node.get("schema", {}).get("$ref", "") if isinstance(node.get("schema"), dict) else ""
        name = reference.rsplit("/", 1)[-1]
        examples = [node["example"]] if "example" in node else []
        examples += [example["value"] for example in node.get("examples", {}).values()] if name in kinds else []
        for example in examples if name in kinds else []:
            kinds[name].model_validate(example)
            checked[name] += 1
    assert checked["JobView"] >= 2
    assert checked["JobPage"] >= 1
    assert checked["EventPage"] >= 2
    assert checked["Problem"] >= 10
