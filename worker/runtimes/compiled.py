"""Where the compiled graphs of a bundle lie, and how they come to be there: once, whole, under a lock."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.bundles import Bundle
from shared.errors import BundleError

FORMAT = 1  # raise it when the graphs' inputs or outputs change: older caches are then ignored
GRAPHS = ("lungs", "classifiers")


def folder(bundle: Bundle, cache: Path) -> Path:
    """The folder of this bundle's graphs: the manifest's checksum covers every weights file's."""
    manifest = bundle.manifest
    return cache / f"{manifest.name}-{manifest.version}-{bundle.sha256[:16]}-ir{FORMAT}"


def exists(bundle: Bundle, cache: Path) -> bool:
    """Whether this bundle was compiled into `cache`."""
    return folder(bundle, cache).is_dir()


def ensure(bundle: Bundle, cache: Path) -> Path:
    """The folder of this bundle's graphs, compiled now if need be; BundleError where that is impossible.

    A process of its own compiles, so that the memory torch takes is given back.
    """
    if exists(bundle, cache):
        return folder(bundle, cache)
    if importlib.util.find_spec("torch") is None:
        raise BundleError(
            f"{bundle.identity} is not compiled in {cache}; run `hilum bundle compile` where torch is installed"
        )
    with locked(cache):
        if not exists(bundle, cache):
            _compile_apart(bundle, cache)
    return folder(bundle, cache)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Hold the cache's lock: of several workers that start together one compiles and the others wait."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replacing(final: Path) -> Iterator[Path]:
    """A new folder that becomes `final` when the block ends well: readers see all of it or nothing."""
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        yield draft
        os.chmod(draft, 0o755)
        if final.exists():
            shutil.rmtree(final)
        draft.rename(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _compile_apart(bundle: Bundle, cache: Path) -> None:
    command = [sys.executable, "-m", "worker.runtimes.export", str(bundle.root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"{bundle.identity} cannot be compiled: {done.stderr.strip()[-1000:]}")
