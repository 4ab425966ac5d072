"""The house as a test: which way the arrows point, where each third party lives, and how code in here looks."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

import pytest

from shared.settings import ROOT

ROOMS = ("api", "worker", "shared", "training", "migrations")
LONGEST_FILE = 300
LONGEST_FUNCTION = 40

# Which modules of ours each room may import; the first pattern that fits a file decides.
PURE = ("shared.errors", "shared.schemas", "shared.bundles")
ARROWS: dict[str, tuple[str, ...]] = {
    "shared/*": ("shared",),
    "api/*": ("api", "shared"),
    "worker/pipeline/*": ("worker.pipeline", *PURE),
    # parity compares runtimes on what the pipeline makes of an image.
    "worker/runtimes/*": ("worker.runtimes", "worker.pipeline", *PURE),
    "worker/*": ("worker", "shared"),
    "training/*": (
        "training",
        "worker.pipeline",
        "worker.runtimes",
        *PURE,
        "shared.storage",
        "shared.settings",
        "shared.logs",
    ),
    # env.py asks shared.db which driver a URL means.
    "migrations/*": ("shared.settings", "shared.columns", "shared.models", "shared.db"),
}

# Where each third party that a room could be locked into may be imported.
ROOMS_OF: dict[str, tuple[str, ...]] = {
    "fastapi": ("api/*",),
    "starlette": ("api/*",),
    "uvicorn": ("api/serve.py",),
    "sse_starlette": ("api/stream.py", "api/routes/events.py"),
    "celery": ("shared/queue.py", "worker/app.py", "worker/tasks.py"),
    "kombu": ("shared/queue.py",),
    "redis": ("api/broker.py",),  # a broker of our own is started and asked; work never goes through this client
    "torch": ("worker/runtimes/*", "training/*"),
    "torchvision": ("worker/runtimes/*", "training/*"),
    "openvino": ("worker/runtimes/*",),
    "safetensors": ("worker/runtimes/*", "training/*"),
    "sklearn": ("training/*",),
    "matplotlib": ("training/*",),
    "numpy": ("worker/*", "training/*"),
    "scipy": ("worker/*", "training/*"),
    "PIL": ("worker/*", "training/*"),
    "pydicom": ("worker/pipeline/dicom.py", "worker/sandboxed.py"),
    # The worker's edge opens transactions and catches a database that is away; its pipeline and runtimes know none.
    "sqlalchemy": ("shared/*", "api/*", "migrations/*", "worker/[!/]*.py"),
    "alembic": ("migrations/*", "api/migrate.py"),
    "limits": ("api/rates.py",),
    "obstore": ("shared/storage.py",),
    "prometheus_client": ("shared/metrics.py", "api/routes/health.py"),
    "structlog": ("shared/logs.py",),
    "pydantic_settings": ("shared/settings.py",),
    "httpx": ("api/demo.py",),
}

# sandbox.py gives the decoder a bare environment: PATH, LANG and LD_LIBRARY_PATH are no settings of ours.
READS_ENVIRONMENT = ("shared/settings.py", "worker/sandbox.py")
GENERATED = "migrations/versions/*"  # one statement per table and index, in one function, as Alembic wants it


@dataclass(frozen=True)
class Source:
    """One module: its path under the root, its text and its tree."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)


Rule = Callable[[Source], Iterator[str]]


def sources() -> list[Source]:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return [Source(file.relative_to(ROOT).as_posix(), file.read_text("utf-8")) for file in files]


def imported(source: Source) -> Iterator[str]:
    """Every module or name that is imported, in full, wherever in the file."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = source.path.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def fits(path: str, patterns: tuple[str, ...]) -> bool:
    """fnmatch, in which `*` crosses slashes; a pattern with `[!/]` stays in its folder by its count of slashes."""
    return any(fnmatch(path, p) and ("[!/]" not in p or path.count("/") == p.count("/") - 1) for p in patterns)


# ---------------------------------------------------------------- the rules


def arrows(source: Source) -> Iterator[str]:
    allowed = next(modules for pattern, modules in ARROWS.items() if fnmatch(source.path, pattern))
    for name in imported(source):
        if name.split(".")[0] in (*ROOMS, "tests", "client") and not within(name, allowed):
            yield f"imports {name}"


def third_parties(source: Source) -> Iterator[str]:
    for name in imported(source):
        package = name.split(".")[0]
        if package in ROOMS_OF and not fits(source.path, ROOMS_OF[package]):
            yield f"imports {name}, which lives in {', '.join(ROOMS_OF[package])}"


def environment(source: Source) -> Iterator[str]:
    if source.path in READS_ENVIRONMENT:
        return
    for node in ast.walk(source.tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
        if name in ("environ", "environb", "getenv"):
            yield f"reads the environment ({name})"


def strict_weights(source: Source) -> Iterator[str]:
    """`strict=False` hides a wrong head; torch.load without weights_only runs what a file says."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        # zip(..., strict=False) is a plain name, and no load.
        if given.get("strict") is False:
            yield f"line {node.lineno}: strict=False"
        whole = ast.unparse(node.func)
        if whole == "torch.load" and given.get("weights_only") is not True:
            yield f"line {node.lineno}: torch.load without weights_only=True"


def sizes(source: Source) -> Iterator[str]:
    if fnmatch(source.path, GENERATED):
        return
    lines = len(source.text.splitlines())
    if lines > LONGEST_FILE:
        yield f"{lines} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"{node.name} has {length} lines"


def names(source: Source) -> Iterator[str]:
    stem = source.path.rsplit("/", 1)[-1].removesuffix(".py")
    if stem in ("utils", "util", "helpers", "common", "misc"):
        yield "is called after nothing it does"
    for node in ast.walk(source.tree):
        # `_Helper` of the sandbox is a helper process: the word is its whole name, not an excuse at the end of one.
        if isinstance(node, ast.ClassDef) and re.search(r"[a-z](Service|Manager|Helper)$|^Base[A-Z]", node.name):
            yield f"class {node.name}"


def docstrings(source: Source) -> Iterator[str]:
    if source.path.endswith("__init__.py"):
        if source.text.strip():
            yield "an __init__.py that is not empty"
        return
    if not ast.get_docstring(source.tree):
        yield "has no docstring"
    for node in source.tree.body:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named and not node.name.startswith("_") and not ast.get_docstring(node) and not _generated(source, node):  # type: ignore[attr-defined, arg-type]
            yield f"{node.name} promises nothing"  # type: ignore[attr-defined]


def _generated(source: Source, node: ast.stmt) -> bool:
    return fnmatch(source.path, GENERATED) and getattr(node, "name", "") in ("upgrade", "downgrade")


RULES: tuple[Rule, ...] = (arrows, third_parties, environment, strict_weights, sizes, names, docstrings)


def blocking(found: list[Source]) -> set[tuple[str, str]]:
    """The sync functions of api/ that open a session or read a store, themselves or through each other."""
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for source in found:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef):
                calls[_stem(source), node.name] = set(_called(source, node))
    slow = {(stem, name) for (stem, name), called in calls.items() if any(_opens(call) for call in called)}
    while grown := {key for key, called in calls.items() if called & slow} - slow:
        slow |= grown
    return slow


def loop_blockers(found: list[Source]) -> Iterator[str]:
    """Calls within an `async def` of api/ that would hold the event loop: they belong in the thread pool."""
    slow = blocking(found)
    for source in found:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.AsyncFunctionDef):
                for call in _called(source, node):
                    if call in slow or _opens(call):
                        yield f"{source.path}: {node.name} calls {'.'.join(call)} on the event loop"


def _stem(source: Source) -> str:
    return source.path.rsplit("/", 1)[-1].removesuffix(".py")


def _opens(call: tuple[str, str]) -> bool:
    return call[1] in ("reading", "transaction") or call[0] == "storage"


def _called(source: Source, function: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every call in the body; functions within it are looked at on their own."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield _stem(source), node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value).rsplit(".", 1)[-1], node.func.attr
        yield from _called(source, node)


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    found = sources()
    assert len(found) > 50
    assert [f"{source.path}: {what}" for source in found for what in rule(source)] == []


def test_no_request_blocks_the_event_loop() -> None:
    found = [source for source in sources() if source.path.startswith("api/")]
    assert ("waiting", "read") in blocking(found)
    assert ("intake", "accept") in blocking(found)
    assert list(loop_blockers(found)) == []


@pytest.mark.parametrize(
    ("rule", "path", "text", "what"),
    [
        (arrows, "api/x.py", "from worker.pipeline import decode", "imports worker.pipeline.decode"),
        (arrows, "api/x.py", "def f():\n    import worker", "imports worker"),
        (arrows, "shared/x.py", "from api import app", "imports api.app"),
        (arrows, "worker/pipeline/x.py", "from shared import storage", "imports shared.storage"),
        (arrows, "worker/pipeline/x.py", "from ..runtimes import torch", "imports worker.runtimes.torch"),
        (arrows, "worker/runtimes/x.py", "from shared.db import reading", "imports shared.db.reading"),
        (arrows, "training/x.py", "from worker.sandbox import Sandbox", "imports worker.sandbox.Sandbox"),
        (arrows, "worker/x.py", "from tests import builders", "imports tests.builders"),
        (third_parties, "api/x.py", "import torch", "imports torch"),
        (third_parties, "shared/x.py", "from fastapi import Request", "imports fastapi.Request"),
        (third_parties, "worker/loop.py", "from celery import Celery", "imports celery.Celery"),
        (third_parties, "worker/pipeline/x.py", "import openvino", "imports openvino"),
        (third_parties, "worker/runtimes/x.py", "import sqlalchemy.orm", "imports sqlalchemy.orm"),
        (third_parties, "training/x.py", "import sqlalchemy", "imports sqlalchemy"),
        (environment, "api/x.py", "import os\nos.environ['A']", "reads the environment"),
        (environment, "worker/x.py", "from os import getenv", "reads the environment"),
        (strict_weights, "worker/x.py", "net.load_state_dict(s, strict=False)", "strict=False"),
        (strict_weights, "training/x.py", "import torch\ntorch.load('a')", "torch.load"),
        (strict_weights, "training/x.py", "import torch\ntorch.load('a', weights_only=False)", "torch.load"),
        (sizes, "api/x.py", "\n" * (LONGEST_FILE + 1), "301 lines"),
        (sizes, "api/x.py", "def f():\n" + "    a = 1\n" * LONGEST_FUNCTION, "f has 41 lines"),
        (names, "shared/utils.py", "", "called after nothing"),
        (names, "shared/x.py", "class JobManager: pass", "class JobManager"),
        (docstrings, "shared/x.py", "a = 1", "no docstring"),
        (docstrings, "shared/x.py", '"""Doc."""\ndef f(): pass', "f promises nothing"),
        (docstrings, "shared/__init__.py", "a = 1", "not empty"),
    ],
)
def test_a_violation_is_found(rule: Rule, path: str, text: str, what: str) -> None:
    assert [found for found in rule(Source(path, text)) if what in found]


def test_a_session_on_the_event_loop_is_found() -> None:
    reads = Source("api/waiting.py", "def read():\n    with reading(d) as s: pass\ndef outer(): return read()")
    route = "from api import waiting\nasync def route():\n    {}"
    for bad in ("waiting.read()", "x = [waiting.outer()]", "with transaction(d): pass", "parts.storage.get(k)"):
        assert list(loop_blockers([reads, Source("api/routes/x.py", route.format(bad))])), bad
    for good in ("await run_in_threadpool(waiting.read)", "def late():\n        waiting.read()"):
        assert not list(loop_blockers([reads, Source("api/routes/x.py", route.format(good))])), good
