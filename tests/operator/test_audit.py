"""The audit log: append-only in the database itself, written for every deed of an operator, exported as JSON lines."""

from __future__ import annotations

import ast
import json
import os
import pwd
import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared import deeds, ids, tenants
from shared.db import Database, reading, together, transaction
from shared.models import Deed
from shared.settings import ROOT
from tests.operator.conftest import Typed

sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def actions(database: Database) -> list[tuple[str, str]]:
    with reading(database) as session:
        return [(deed.action, deed.actor) for deed in deeds.export(session)]


# ---------------------------------------------------------------- append-only


@pytest.mark.parametrize("statement", ["UPDATE deeds SET actor = 'nobody'", "DELETE FROM deeds", "TRUNCATE deeds"])
def test_the_database_refuses_to_change_or_to_forget(database: Database, tenant_id: str, statement: str) -> None:
    if database.engine.dialect.name == "sqlite" and "TRUNCATE" in statement:
        statement = "DELETE FROM deeds WHERE 1"  # SQLite has no other
    with database.engine.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.exec_driver_sql(statement)
    assert actions(database) == [("tenant.created", "hilum")]


def test_what_tried_to_forget_leaves_nothing(database: Database, tenant_id: str) -> None:
    def forget(session: Session) -> None:
        deeds.record(session, "job.submitted", "job_1", tenant_id=tenant_id, actor="key_1")
        session.flush()
        session.execute(delete(Deed))

    with pytest.raises(DBAPIError):
        together(database, forget)
    together(database, lambda session: tenants.create(session, "another"))
    assert [action for action, _ in actions(database)] == ["tenant.created", "tenant.created"]


def test_a_deed_that_is_undone_was_never_done(database: Database) -> None:
    def undone(session: Session) -> None:
        tenants.create(session, "undone")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        together(database, undone)
    assert actions(database) == []


# ---------------------------------------------------------------- what an operator does


@sqlite
def test_what_is_typed_is_written_down(database: Database, typed: Typed) -> None:
    who = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    typed("tenant", "create", "clinic")
    typed("tenant", "set", "clinic", "--rate-per-minute", "60", "--retention-days", "30")
    typed("tenant", "set", "clinic", "--retention-days", "default")
    typed("key", "create", "--tenant", "clinic", "--name", "ci", "--test", "--expires-in-days", "7")
    key_id = typed("key", "list", "--tenant", "clinic").split()[0]
    assert "valid until" in typed("key", "list", "--tenant", "clinic")
    newer = typed("key", "rotate", key_id, "--overlap-hours", "1")
    assert newer.startswith("hlm_test_")
    typed("key", "revoke", key_id)
    said = [json.loads(line) for line in typed("audit", "export", "--tenant", "clinic").splitlines()]
    names = ["tenant.created", "tenant.changed", "tenant.changed", "key.created", "key.rotated", "key.revoked"]
    assert [deed["action"] for deed in said] == names
    assert {deed["actor"] for deed in said} == {who}
    assert said[1]["detail"]["after"] == {"rate_per_minute": 60, "retention_days": 30}
    assert said[2]["detail"] == {"before": {"retention_days": 30}, "after": {"retention_days": None}}
    with reading(database) as session:
        tenant = tenants.named(session, "clinic")
        assert (tenant.rate_per_minute, tenant.queued_cap, tenant.retention_days) == (60, None, None)
    assert newer.strip() not in typed("audit", "export")


@sqlite
def test_mistakes_are_refused_in_words(database: Database, typed: Typed) -> None:
    for words, code, said in (
        (("tenant", "set", "none", "--queued-cap", "1"), 1, "no tenant called none"),
        (("tenant", "set", "none"), 2, "say what to set"),
        (("tenant", "set", "none", "--queued-cap", "many"), 2, "whole number"),
        (("tenant", "set", "none", "--queued-cap", "-1"), 2, "whole number"),
        (("key", "rotate", "key_none"), 1, "no such key"),
        (("audit", "export", "--tenant", "none"), 1, "no tenant called none"),
    ):
        assert said in " ".join(typed(*words, code=code).split()), words
    assert actions(database) == []


def test_an_export_begins_where_it_is_told(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        other = tenants.create(session, "other").id
        old = {"tenant_id": tenant_id, "actor": "key_1", "action": "job.submitted", "detail": {}}
        past = datetime.now(UTC) - timedelta(days=40)
        session.execute(insert(Deed).values(id=ids.earliest("ded", past), at=past, **old))
    with reading(database) as session:
        every = [deed.action for deed in deeds.export(session)]
        since = [deed.action for deed in deeds.export(session, since=datetime.now(UTC) - timedelta(days=1))]
        mine = [deed.tenant for deed in deeds.export(session, tenant_id=other)]
    assert every == ["job.submitted", "tenant.created", "tenant.created"]
    assert since == ["tenant.created", "tenant.created"]
    assert mine == [other]


def test_an_export_is_never_held_as_a_whole(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        for _ in range(3 * deeds.AT_ONCE):
            deeds.record(session, "job.submitted", "job_1", tenant_id=tenant_id, actor="key_1")
    with reading(database) as session:
        found = deeds.export(session)
        next(found)
        assert len(session.identity_map) <= deeds.AT_ONCE
        assert sum(1 for _ in found) == 3 * deeds.AT_ONCE


# ---------------------------------------------------------------- every action is explained


def recorded() -> set[str]:
    """Every action that the source records."""
    found = set()
    for room in ("api", "shared", "worker"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "deeds.record":
                    assert isinstance(node.args[1], ast.Constant), f"{file}: an action that no search would find"
                    found.add(node.args[1].value)
    return found


def test_the_page_explains_every_action_and_no_other() -> None:
    section = (ROOT / "docs" / "http.md").read_text("utf-8").split("\n## Audit\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    written = {action for row in rows for action in re.findall(r"`(\w+\.\w+)`", row)}
    assert written == recorded()
    assert len(written) > 10
