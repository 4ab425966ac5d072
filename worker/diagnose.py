"""`hilum diagnose`: the pipeline of the service on files of this machine, without any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import bundles
from shared.bundles import Bundle
from shared.errors import Rejected
from shared.schemas import DISCLAIMER
from shared.settings import Settings
from worker import artifacts
from worker.artifacts import Files
from worker.pipeline import render
from worker.pipeline.analyze import Diagnosis, analyze
from worker.pipeline.predictor import Predictor
from worker.runtimes.choose import open_predictor
from worker.sandbox import Sandbox, open_sandbox


@dataclass(frozen=True)
class Wish:
    """What besides the diagnosis is wanted: explanations, and a folder for their pictures."""

    explain: tuple[str, ...] = ()
    out: Path | None = None


@dataclass
class Bench:
    """What one run of the command works with."""

    bundle: Bundle
    predictor: Predictor
    sandbox: Sandbox
    taken: set[Path] = field(default_factory=set)


def diagnose(settings: Settings, files: Sequence[str], wish: Wish) -> Iterator[dict[str, Any]]:
    """One answer per file, in order: the result fields; `reason` where it was rejected, `error` where it was not read.

    BundleError, Misconfigured and Unavailable are not about one file and end the run.
    """
    bundle = bundles.read(settings.bundle)
    options = {"runtime": settings.runtime, "precision": settings.precision, "device": settings.device}
    predictor = open_predictor(bundle, cache=settings.cache, threads=settings.threads, **options)
    bench = Bench(bundle, predictor, open_sandbox(settings))
    try:
        for name in files:
            yield {"file": name, **_answer(bench, Path(name), wish)}
    finally:
        bench.sandbox.close()


def line(answer: dict[str, Any]) -> str:
    """An answer as one line for people."""
    if "error" in answer:
        return f"{answer['file']}: not read: {answer['error']['detail']}"
    if answer["top_class"] is None:
        reason = answer["reason"]
        measured = "" if reason["value"] is None else f" ({reason['value']:.4g}, limit {reason['threshold']:.4g})"
        return f"{answer['file']}: not judged: {reason['code']}: {reason['detail']}{measured}"
    doubts = f"  uncertain: {', '.join(answer['uncertain_because'])}" if answer["uncertain"] else ""
    numbers = f"{answer['confidence']:.1%}  margin {answer['margin_top2']:.1%}"
    return (
        f"{answer['file']}: {answer['top_class']}  {numbers}  disagreement {answer['model_disagreement']:.0%}{doubts}"
    )


def _answer(bench: Bench, path: Path, wish: Wish) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        return {"top_class": None, "error": {"code": "unreadable_file", "detail": error.strerror or str(error)}}
    try:
        diagnosis = analyze(data, bench.predictor, bench.bundle, decode=bench.sandbox.decode)
    except Rejected as no:
        reason = {"code": no.code, "detail": no.detail, "value": no.value, "threshold": no.threshold}
        return {"top_class": None, "reason": reason, "bundle": bench.bundle.identity, "disclaimer": DISCLAIMER}
    answer = diagnosis.analysis.model_dump(mode="json")
    return {**answer, **_extras(bench, path, diagnosis, wish)}


def _extras(bench: Bench, path: Path, diagnosis: Diagnosis, wish: Wish) -> dict[str, Any]:
    """The explanations that were asked for, and the paths of what was written to the folder, if one was given."""
    files: Files = artifacts.of_diagnosis(diagnosis, bench.bundle) if wish.out else {}
    explained = {}
    if "gradcam" in wish.explain:
        film, cams = render.gray8(diagnosis.radiograph.pixels), artifacts.cams_of(diagnosis, bench.bundle)
        top = diagnosis.analysis.top_class
        explained["gradcam"], pictures = artifacts.of_gradcam(film, diagnosis.lungs.mask, cams, top)
        files |= pictures
    extras: dict[str, Any] = {"explanations": explained} if wish.explain else {}
    if wish.out:
        folder = _folder(bench, wish.out, path.stem or "image")
        for name, (data, _) in files.items():
            (folder / name).write_bytes(data)
        extras["artifacts"] = {name: str(folder / name) for name in files}
    return extras


def _folder(bench: Bench, out: Path, stem: str) -> Path:
    """A folder of its own for each file of this run, also where two are called alike."""
    folder, number = out / stem, 1
    while folder in bench.taken:
        number += 1
        folder = out / f"{stem}-{number}"
    bench.taken.add(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
