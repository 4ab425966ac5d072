"""The operator's commands, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import tenants
from shared.db import open_database, reading
from shared.errors import Unauthenticated
from shared.settings import Settings

Hilum = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def hilum(clean_env: dict[str, str], home: Path) -> Hilum:
    """Run `hilum` on a home of its own; the exit code must be the one that is expected."""

    def run(*words: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "api.cli", *words]
        env = {**clean_env, "HILUM_HOME": str(home), **env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def test_tenants_and_keys_from_nothing_to_revoked(hilum: Hilum, home: Path) -> None:
    hilum("migrate")
    hilum("migrate")
    tenant_id = hilum("tenant", "create", "clinic").stdout.strip()
    assert f"{tenant_id}  " in hilum("tenant", "list").stdout
    key = hilum("key", "create", "--tenant", "clinic", "--name", "pacs", "--scope", "read").stdout.strip()
    database = open_database(Settings(home=home, database_url=""))
    with reading(database) as session:
        row = tenants.authenticate(session, key)
        assert (row.tenant_id, row.scopes) == (tenant_id, ["read"])
    listed = hilum("key", "list", "--tenant", "clinic").stdout
    assert key not in listed
    assert "valid" in listed
    hilum("key", "revoke", listed.split()[0])
    assert "revoked" in hilum("key", "list", "--tenant", "clinic").stdout
    with reading(database) as session, pytest.raises(Unauthenticated):
        tenants.authenticate(session, key)


def test_the_first_key_of_a_deployment_needs_no_tenant(hilum: Hilum) -> None:
    hilum("migrate")
    assert hilum("key", "create").stdout.startswith("hlm_")
    assert "default" in hilum("tenant", "list").stdout


def test_mistakes_are_one_sentence(hilum: Hilum) -> None:
    assert "hilum migrate" in hilum("tenant", "list", code=1).stderr
    hilum("migrate")
    hilum("tenant", "create", "clinic")
    assert "already" in hilum("tenant", "create", "clinic", code=1).stderr
    assert "no tenant" in hilum("key", "create", "--tenant", "none", code=1).stderr
    assert "scopes" in hilum("key", "create", "--scope", "all", code=2).stderr
    assert "no such key" in hilum("key", "revoke", "key_none", code=1).stderr
    assert "no tenant" in hilum("job", "list", code=1).stderr
    assert "HILUM_LEASE_S" in hilum("tenant", "list", code=1, HILUM_LEASE_S="soon").stderr
    assert "PostgreSQL and SQLite" in hilum("tenant", "list", code=1, DATABASE_URL="mysql://x/y").stderr


@pytest.mark.parametrize("words", [("sweep", "--once"), ("sweep",), ("worker",), ("api",)], ids=" ".join)
def test_a_schedule_that_is_none_is_said_at_the_start(hilum: Hilum, words: tuple[str, ...]) -> None:
    """Whatever the process does: the sweeper would learn it in the middle of what it frees."""
    said = hilum(*words, code=1, HILUM_WEBHOOK_SCHEDULE_S="5;300").stderr
    assert "HILUM_WEBHOOK_SCHEDULE_S" in said
    assert "separated by commas" in said


def test_a_worker_without_a_broker_says_so(hilum: Hilum) -> None:
    assert "REDIS_URL" in hilum("worker", code=1).stderr


def test_the_commands_of_other_rooms_are_there(hilum: Hilum) -> None:
    said = hilum("--help").stdout
    for command in ("up", "api", "sweep", "migrate", "demo", "tenant", "key", "job", "worker", "diagnose", "bundle"):
        assert f" {command} " in said
    assert "--queues" in hilum("worker", "--help").stdout
    assert "compile" in hilum("bundle", "--help").stdout


def test_our_own_commands_import_no_worker(clean_env: dict[str, str]) -> None:
    script = (
        "import sys, json, api.cli\n"
        "try: api.cli.app(['key', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('worker', 'torch', 'openvino', 'numpy')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=clean_env, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_room_that_cannot_be_imported_leaves_the_rest(clean_env: dict[str, str]) -> None:
    script = "import sys; sys.modules['worker.cli'] = None; import api.cli; api.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], env=clean_env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "migrate" in done.stdout
    assert "`worker` are left out" in done.stderr
