"""Dockerfile, compose file, Makefile and CI against the code: no command, variable, path or pin that does not exist.

The images themselves are not built here: that needs a container engine.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import AliasChoices

from api import cli
from shared.settings import ROOT, Settings

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
OF_OTHERS = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "HILUM_PUBLISH"}
OF_PYTHON = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK", "PATH"}


def variables() -> set[str]:
    """Every environment variable that the settings read."""
    known = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        known |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {f"HILUM_{name.upper()}"}
    return known


def parsed(words: list[str]) -> None:
    """Let the real command line parse `words`, without running anything; SystemExit or an error when it cannot."""
    assert words[0] == "hilum", words
    command, context = typer.main.get_command(cli.app), None
    rest = words[1:]
    while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
        context = command.make_context("hilum", [], resilient_parsing=True)
        found = command.get_command(context, rest[0])
        assert found, f"hilum has no command {rest[0]}"
        command, rest = found, rest[1:]
    command.make_context(words[1], list(rest), parent=context)


def instructions(keyword: str) -> list[str]:
    """The arguments of each instruction of the Dockerfile, continuation lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(keyword + " ")]


@pytest.mark.parametrize("name", OURS)
def test_each_service_runs_a_command_that_exists(name: str) -> None:
    parsed(OURS[name]["command"])


def test_each_image_runs_a_command_that_exists() -> None:
    commands = [json.loads(text) for text in instructions("CMD")]
    assert commands
    for words in commands:
        parsed(words)
    for text in instructions("RUN"):
        for part in re.split(r"&&|;", text):
            words = [word for word in shlex.split(part) if not re.match(r"[A-Z_]+=", word)]
            if words[0] == "hilum":
                parsed(words)


@pytest.mark.parametrize("command", ["hilum up --port 0 --workers 2 --key-file k", "hilum worker --concurrency 2"])
def test_the_parser_of_this_test_accepts(command: str) -> None:
    parsed(command.split())


@pytest.mark.parametrize("command", ["hilum serve", "hilum worker --queue analyze", "hilum migrate now"])
def test_the_parser_of_this_test_refuses(command: str) -> None:
    with pytest.raises(Exception, match=r"no command|No such option|unexpected extra"):
        parsed(command.split())


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_variable_of_a_service_is_read_by_somebody(name: str) -> None:
    given = set(COMPOSE["services"][name].get("environment", {}))
    assert given <= (variables() if name in OURS else OF_OTHERS)


def test_each_variable_that_compose_asks_of_its_caller_is_known() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    assert set(re.findall(r"\$\{([A-Z_0-9]+)", text)) <= variables() | OF_OTHERS


def test_the_settings_of_compose_are_valid() -> None:
    for service in OURS.values():
        for name, value in service["environment"].items():
            assert Settings.model_validate({name: _default(str(value))}), name


def test_each_variable_of_the_images_is_read_by_somebody() -> None:
    given = {name for text in instructions("ENV") for name in re.findall(r"([A-Z_0-9]+)=", text)}
    assert given <= variables() | OF_PYTHON


def test_the_services_are_those_that_the_documents_name() -> None:
    services = {"postgres", "redis", "migrate", "api", "sweep", "worker", "deliver", "worker-gpu"}
    assert set(COMPOSE["services"]) == services
    assert COMPOSE["services"]["worker-gpu"]["profiles"] == ["gpu"]
    assert "--appendonly" in COMPOSE["services"]["redis"]["command"]
    for service in OURS.values():
        # A fixed name or a port of the host would forbid `--scale worker=N`.
        assert "container_name" not in service
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["api"]
    for name in set(OURS) - {"migrate"}:
        assert OURS[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_each_build_target_is_a_stage() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert {service["build"]["target"] for service in OURS.values()} <= set(stages)
    assert {"api", "worker-cpu", "worker-gpu"} <= set(stages)


def test_each_path_that_is_copied_exists_and_reaches_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    for text in instructions("COPY"):
        if "--from" in text:
            continue
        for path in text.split()[:-1]:
            assert path.split("/")[0] in sent, path
            assert (ROOT / path).exists(), path


def test_the_manifest_in_the_api_image_is_the_active_one() -> None:
    default: Path = Settings.model_fields["bundle"].default
    assert f"{default.relative_to(ROOT)}/manifest.json" in DOCKERFILE


def test_the_lean_images_install_no_torch() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for stage in stages:
        if re.match(r"\S+ AS (base|api|worker|worker-cpu)\n", stage):
            installed = re.findall(r"pip install (.*)", stage)
            assert not any("torch" in words for words in installed), stage
    assert not any("torch" in need for need in PROJECT["optional-dependencies"]["worker"])
    assert not any(re.match(r"torch|openvino|numpy", need) for need in PROJECT["dependencies"])


def test_no_image_runs_as_root() -> None:
    for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE):
        if re.match(r"\S+ AS (api|worker-cpu|worker-gpu)\n", stage):
            assert "USER hilum" in stage


def test_torch_is_pinned_alike_everywhere() -> None:
    pins = {need for need in PROJECT["optional-dependencies"]["torch"] if need.startswith("torch")}
    assert len(pins) == 2
    assert set(re.search(r"^TORCH := (.*)$", MAKEFILE, re.MULTILINE)[1].split()) == pins  # type: ignore[index]
    assert set(re.findall(r"torch(?:vision)?==[\d.]+", DOCKERFILE)) == pins


def test_the_targets_of_make() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "demo", "up", "test", "check", "bench", "sbom", "clean"):
        assert re.search(rf"^  {target} ", said, re.MULTILINE)


def test_make_finds_no_python_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "pyproject.toml").write_text("")
    done = subprocess.run(
        ["make", "install", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0
    assert "no Python 3.11" in done.stderr


def test_ci_calls_make_and_forbids_skips() -> None:
    text = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make check" in text
    assert "HILUM_FAIL_ON_SKIP=1 make test" in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_every_hilum_command_in_the_operators_pages_exists() -> None:
    for page in ("README.md", "docs/operations.md", "docs/deploy.md"):
        text = (ROOT / page).read_text("utf-8")
        blocks = "\n".join(re.findall(r"```(?:sh|ini)\n(.*?)```", text, re.DOTALL))
        commands = re.findall(r"(?:^|[\s/=])(hilum (?!-)[^\n#|>]+)", blocks, re.MULTILINE)
        assert commands or page == "README.md"
        for command in commands:
            parsed(shlex.split(command))


def test_every_variable_in_the_operators_pages_exists() -> None:
    for page in ("README.md", "docs/operations.md", "docs/deploy.md"):
        named = set(re.findall(r"\bHILUM_[A-Z0-9_]+\b", (ROOT / page).read_text("utf-8")))
        assert named <= variables() | OF_OTHERS, page


def _default(text: str) -> str:
    """What compose puts for `${NAME:-default}` when nobody sets NAME; nested ones from the inside out."""
    while match := re.search(r"\$\{[A-Z_0-9]+:-([^${}]*)\}", text):
        text = text[: match.start()] + match[1] + text[match.end() :]
    return text
