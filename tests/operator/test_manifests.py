"""docs/deploy.md against the code: every command, variable, probe, image and metric of its examples is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from api.app import create_app
from shared import metrics
from shared.backlog import Backlog
from shared.settings import ROOT, Settings
from tests.operator.test_deploy import COMPOSE, parsed, variables

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MANIFESTS: list[dict[str, Any]] = [one for block in BLOCKS for one in yaml.safe_load_all(block)]
STOP_S = 10  # a worker that is asked to stop is gone after this: see worker/lease.py


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every container with the specification of its pod."""
    for manifest in MANIFESTS:
        pod = manifest["spec"].get("template", {}).get("spec", {})
        yield from ((pod, container) for container in pod.get("containers", ()))


def named(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == kind}


def test_there_is_one_process_of_each_kind():
    commands = {tuple(container["command"][:2]) for _, container in containers()}
    assert commands == {("hilum", word) for word in ("migrate", "api", "sweep", "worker")}


def test_every_container_runs_a_command_and_an_image_that_exist():
    images = {service["image"] for service in COMPOSE["services"].values()}
    for pod, container in containers():
        parsed(container["command"])
        assert container["image"] in images
        assert {one["name"] for one in container.get("env", ())} <= variables()
        if container["command"][1] == "worker":
            assert pod["terminationGracePeriodSeconds"] > STOP_S
            (queues,) = (word for word in container["command"] if "," in word or word == "deliver")
            assert set(queues.split(",")) <= {"analyze", "explain", "deliver"}


def test_every_queue_has_a_worker():
    said = " ".join(" ".join(container["command"]) for _, container in containers())
    assert all(queue in said for queue in ("analyze", "explain", "deliver"))


def test_probes_ask_what_needs_no_broker_and_no_worker():
    paths = create_app(Settings()).openapi()["paths"]
    probes = [container[kind] for _, container in containers() for kind in container if kind.endswith("Probe")]
    assert {probe["httpGet"]["path"] for probe in probes} == {"/healthz"}
    assert "/healthz" in paths
    ports = {port["containerPort"] for _, container in containers() for port in container.get("ports", ())}
    assert {probe["httpGet"]["port"] for probe in probes} == ports == {8000}


def test_the_autoscaler_reads_a_metric_and_scales_a_deployment_that_exist():
    families = {family.name for family in metrics.of_backlog(Backlog({}, {}, 0, {}, 0))}
    (scaler,) = named("ScaledObject").values()
    target = named("Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]
    for trigger in scaler["spec"]["triggers"]:
        assert set(re.findall(r"hilum_\w+", trigger["metadata"]["query"])) <= families
        assert float(trigger["metadata"]["threshold"]) > 0
    assert scaler["spec"]["minReplicaCount"] >= 1  # nobody would see a queue that no worker serves grow old


def test_an_upgrade_brings_a_migration_of_its_own():
    """Kubernetes refuses to change a Job: one with a fixed name could be applied once."""
    (name,) = named("Job")
    assert re.fullmatch(r"hilum-migrate(-\d+){3}", name)
    assert named("Job")[name]["spec"]["ttlSecondsAfterFinished"] > 0
    assert f"job/{name}" in PAGE


def test_every_selector_selects_its_own_pods():
    for one in named("Deployment").values():
        assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]


def test_the_procfile_names_commands_and_variables_that_exist():
    (block,) = re.findall(r"^```\n# Procfile\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    processes = dict(line.split(": ", 1) for line in block.splitlines())
    assert processes.keys() == {"release", "web", "worker", "sweep"}
    for command in processes.values():
        words = shlex.split(command)
        while "=" in words[0]:
            assert words.pop(0).split("=")[0] in variables()
        parsed(words)


@pytest.mark.parametrize("given", ["postgres://u:p@host/name", "postgresql://u:p@host/name"])
def test_what_a_platform_hands_out_is_understood(monkeypatch: pytest.MonkeyPatch, given: str):
    from shared.db import url_of

    for name, value in {"DATABASE_URL": given, "REDIS_URL": "rediss://:p@host:1", "PORT": "5006"}.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.port, settings.broker_url) == (5006, "rediss://:p@host:1")
    assert url_of(settings).drivername == "postgresql+psycopg"
