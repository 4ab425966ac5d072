"""What the documents say is so: paths, settings, metrics, codes, commands, targets and links."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from pydantic import AliasChoices

from api.app import create_app
from api.cli import app as hilum
from shared import metrics
from shared.backlog import Backlog
from shared.settings import ROOT, Settings
from training.__main__ import app as hilum_train

TESTS_ONLY = {"HILUM_DATA", "HILUM_TEST_POSTGRES", "HILUM_FAIL_ON_SKIP"}
# Read by the compose file and by the trainer's command line, not by Settings.
ELSEWHERE = {"HILUM_PUBLISH", "HILUM_TRAIN_DATA"}
# Written in two halves, so that this file holds none of them.
FORBIDDEN = ["/" + "work/", "/" + "root/", "/home/" + "[a-z]", r"\.\." + "/shared", "/tmp/" + "hilum"]
MAY_SAY = {".ci/run"}  # it looks for the test data beside the checkout


def pages() -> list[Path]:
    """Every page of documentation that is written by hand or by a command."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bundles").rglob("*.md")]
    return sorted(found)


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- http.md


def test_http_names_every_operation_and_no_other() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    offered = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    written = set(re.findall(r"^\| `([A-Z]+) (/[^\s?]*)` \|", read("docs/http.md"), re.MULTILINE))
    assert written == offered


def test_every_path_that_any_page_mentions_is_there() -> None:
    known = {re.sub(r"{\w+}", "{}", path) for path in create_app(Settings()).openapi()["paths"]}
    known |= {"/docs", "/openapi.json"}
    for page in pages():
        for path in re.findall(
            r"`(?:[A-Z]+ )?(/(?:v1|predict|explain|health|healthz|readyz|metrics)\b[^\s`?]*)", page.read_text("utf-8")
        ):
            filled = re.sub(r"{\w+}|\$\w+", "{}", path).rstrip("/")
            assert filled in known or path == "/v1", f"{named(page)}: {path}"


def codes() -> Iterator[str]:
    """Every code that the source gives to an error, a failure, a refusal or a check of quality."""
    for room in ("api", "shared", "worker"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                yield from (
                    str(w.value.value) for w in node.keywords if w.arg == "code" and isinstance(w.value, ast.Constant)
                )
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                place = {"Rejected": 0, "Unreadable": 0, "Check": 1}.get(name)
                if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                    yield str(node.args[place].value)  # type: ignore[attr-defined]


def test_http_explains_every_code() -> None:
    page, found = read("docs/http.md"), {code for code in codes() if re.fullmatch(r"[a-z_]+", code)}
    assert len(found) > 20
    assert sorted(code for code in found if f"`{code}`" not in page) == []


def test_every_example_in_json_is_json() -> None:
    for page in pages():
        for block in re.findall(r"^```json\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            json.loads(block)


# ---------------------------------------------------------------- settings and metrics


def variables(name: str) -> list[str]:
    alias = Settings.model_fields[name].validation_alias
    return [str(v) for v in alias.choices] if isinstance(alias, AliasChoices) else [f"HILUM_{name.upper()}"]


def row(name: str) -> str:
    """The row of a setting in operations.md."""
    field = Settings.model_fields[name]
    default = field.default
    if isinstance(default, Path) and default.is_absolute():
        default = default.relative_to(ROOT)
    if isinstance(default, bool):
        default = str(default).lower()
    shown = f"{default:g}" if isinstance(default, float) else f"`{default}`" if str(default) else ""
    shown = shown.strip("`") if isinstance(default, int) else shown
    return f"| {', '.join(f'`{v}`' for v in variables(name))} | {shown} | {field.description} |"


def test_operations_lists_every_setting_with_its_default() -> None:
    page = read("docs/operations.md").splitlines()
    assert [row(name) for name in Settings.model_fields if row(name) not in page] == []


def test_every_variable_that_is_mentioned_exists() -> None:
    known = {v for name in Settings.model_fields for v in variables(name)} | TESTS_ONLY | ELSEWHERE
    files = [*pages(), *(ROOT / name for name in ("Makefile", "Dockerfile", "docker-compose.yml", ".ci/run"))]
    for file in files:
        for variable in re.findall(r"\bHILUM_[A-Z0-9_]+\b", file.read_text("utf-8")):
            assert variable in known, f"{named(file)}: {variable}"


def test_every_setting_is_used() -> None:
    source = "\n".join(
        file.read_text("utf-8") for room in ("api", "shared", "worker") for file in (ROOT / room).rglob("*.py")
    )
    unused = [name for name in Settings.model_fields if not re.search(rf"(settings|self|_plan\[0\])\.{name}\b", source)]
    assert unused == []


def test_operations_lists_every_metric_and_no_other() -> None:
    families = [*metrics.REGISTRY.collect(), *metrics.of_backlog(Backlog({}, {}, 0, {}, 0))]
    offered = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    written = set(re.findall(r"^\| `(hilum_\w+)` \|", read("docs/operations.md"), re.MULTILINE))
    assert written == offered


# ---------------------------------------------------------------- commands and targets


def code_of(text: str) -> Iterator[str]:
    """Every line of a code block, and every code span of the rest."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", rest)


def quoted(program: str) -> Iterator[tuple[str, list[str]]]:
    """Each quoted call of a program: where, and the words after its name up to a comment or another command."""
    for page in pages():
        for line in code_of(page.read_text("utf-8")):
            for call in re.findall(rf"(?:^|[\s/;&|(]){program}((?: [^#;&|)\n]+)?)", line.replace("\\\n", " ")):
                yield named(page), call.split()


@pytest.mark.parametrize(("program", "app"), [("hilum", hilum), ("hilum-train", hilum_train)])
def test_every_quoted_command_exists(program: str, app: typer.Typer) -> None:
    seen = 0
    for page, words in quoted(program):
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "get_command") and re.fullmatch(r"[a-z]+", words[0]):
            inner = command.get_command(typer.Context(command), words[0])
            assert inner is not None, f"{page}: {program} {' '.join(words)}"
            command, words = inner, words[1:]
        seen += bool(command.params)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in known | {"--help"}, f"{page}: {program} {command.name} {option}"
    assert seen


def test_every_quoted_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    calls = [(page, words) for page, words in quoted("make") if words]
    assert calls
    for page, words in calls:
        named_targets = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        assert set(named_targets) <= targets, f"{page}: make {' '.join(words)}"


# ---------------------------------------------------------------- links and words


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the common renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert ROOT in target.resolve().parents or target.resolve() == ROOT, link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text("utf-8")), link


def test_nothing_names_the_machine_it_was_made_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    files = [ROOT / name for name in listed.split("\0") if name] or [
        f for f in ROOT.rglob("*.py") if ".venv" not in f.parts
    ]
    pattern = re.compile("|".join(FORBIDDEN))
    found = []
    for file in files:
        if file.is_file() and file.stat().st_size < 2**20 and named(file) not in MAY_SAY:
            found += [f"{named(file)}: {hit}" for hit in pattern.findall(file.read_bytes().decode("utf-8", "replace"))]
    assert found == []
