"""The worker's commands of `hilum`: worker [list | drain], diagnose, and bundle compile | verify | parity."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from shared import bundles, deeds, logs, workers
from shared.backlog import WORKER_SEEN_S
from shared.bundles import Bundle
from shared.db import open_database, reading, transaction
from shared.models import Worker
from shared.settings import Settings

METHODS = ("gradcam",)
PICTURES = Path("hilum-output")

app = typer.Typer(no_args_is_help=True, add_completion=False)
worker_app = typer.Typer(invoke_without_command=True)
app.add_typer(worker_app, name="worker")
bundle_app = typer.Typer(no_args_is_help=True, help="The trained bundle: compile, verify, compare its runtimes.")
app.add_typer(bundle_app, name="bundle")

Folder = Annotated[Path | None, typer.Argument(help="Folder of the bundle; else HILUM_BUNDLE.", show_default=False)]


@worker_app.callback()
def worker(
    context: typer.Context,
    queues: Annotated[
        str, typer.Option(help="What to work on: analyze, explain, deliver.")
    ] = "analyze,explain,deliver",
    concurrency: Annotated[int, typer.Option(min=1, help="Rows at the same time; they share the cores.")] = 1,
) -> None:
    """Work on what waits, until SIGTERM or Ctrl-C; rows in work are finished within seconds or handed back."""
    if context.invoked_subcommand is not None:
        return
    from worker import app as working

    settings = Settings()
    logs.configure(settings, "worker")
    names = tuple(name.strip() for name in queues.split(",") if name.strip())
    raise typer.Exit(working.run(settings, names, concurrency))


@worker_app.command("list")
def list_workers(as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False) -> None:
    """The workers that have not signed off: id, queues, last seen, runtime, whether it drains, the rows it holds."""
    with reading(open_database(Settings())) as session:
        for row, seen_s in workers.listed(session):
            typer.echo(json.dumps(_told(row, seen_s)) if as_json else _line(row, seen_s))


@worker_app.command()
def drain(
    worker_id: Annotated[str | None, typer.Argument(metavar="ID", help="As `hilum worker list` names it.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every worker that has not signed off.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it claim rows again.")] = False,
) -> None:
    """Let a worker finish what it has and claim nothing more; it stays alive, for whoever started it to end it."""
    if (worker_id is None) != everyone:
        raise typer.BadParameter("name one worker, or say --all")
    with transaction(open_database(Settings())) as session:
        for told in workers.drain(session, worker_id, draining=not undo, by=deeds.typed_by()):
            typer.echo(told)


@app.command()
def diagnose(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="PNG, JPEG, TIFF, BMP or DICOM.")],
    explain: Annotated[str, typer.Option(help="Comma-separated: gradcam.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of mask, class maps and pictures.")] = None,
) -> None:
    """Diagnose files without any server; exit code 1 when one could not be read."""
    from tqdm import tqdm

    from shared.schemas import DISCLAIMER
    from worker import diagnose as diagnosing

    methods = tuple(name.strip() for name in explain.split(",") if name.strip())
    if unknown := set(methods) - set(METHODS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there is {', '.join(METHODS)}", param_hint="--explain")
    wish = diagnosing.Wish(methods, out or (PICTURES if methods else None))
    settings = _quiet()
    unread = False
    answers = diagnosing.diagnose(settings, files, wish)
    with tqdm(answers, total=len(files), unit="film", disable=None if len(files) > 1 else True) as bar:
        for answer in bar:
            unread |= "error" in answer
            bar.write(json.dumps(answer) if as_json else diagnosing.line(answer), file=sys.stdout)
            sys.stdout.flush()
    if not as_json:
        typer.echo(DISCLAIMER)
    raise typer.Exit(1 if unread else 0)


@bundle_app.command("compile")
def compile_bundle(folder: Folder = None) -> None:
    """Compile a bundle for OpenVINO into the cache of this machine; needs torch."""
    from worker.runtimes import compiled

    settings = _quiet()
    found = _bundle(settings, folder)
    from worker.runtimes.export import export  # seconds of torch, which a broken bundle is not worth

    with compiled.locked(settings.cache):
        typer.echo(export(found, settings.cache))


@bundle_app.command()
def verify(folder: Folder = None) -> None:
    """Check every field, file and checksum of a bundle, and, where torch is installed, every key and shape."""
    from importlib.util import find_spec

    found = _bundle(_quiet(), folder)
    strict = find_spec("torch") is not None
    if strict:
        from worker.runtimes import networks

        networks.load_unet(found)
        for index in range(len(found.manifest.networks)):
            networks.load_classifier(found, index)
    names = ", ".join(network.name for network in found.manifest.networks)
    typer.echo(f"{found.identity}: lungs, {names}; classes {', '.join(found.manifest.classes)}")
    typer.echo(
        "All checksums, keys and shapes hold." if strict else "All checksums hold; without torch no key was read."
    )


@bundle_app.command()
def parity(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Radiographs; else drawn ones.", show_default=False)
    ] = None,
    folder: Annotated[Path | None, typer.Option("--bundle", help="Folder of the bundle; else HILUM_BUNDLE.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many to draw where no file is given.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Compare every runtime of this machine with torch in float32; needs torch."""
    from worker.runtimes import parity as comparing
    from worker.runtimes.choose import open_predictor

    settings = _quiet()
    found = _bundle(settings, folder)
    opened = partial(open_predictor, found, cache=settings.cache, threads=settings.threads)
    reference = opened(runtime="torch", precision="f32")
    inputs = comparing.of_files(found, reference, files) if files else comparing.synthetic(found, count)
    for runtime, precision in (("torch", "bf16"), ("openvino", "f32"), ("openvino", "bf16")):
        other = opened(runtime=runtime, precision=precision)
        figures = comparing.compare(reference, other, *inputs, found.manifest.calibration.votes).as_dict()
        if as_json:
            typer.echo(json.dumps({"runtime": runtime, "precision": precision, **figures}))
        else:
            values = "  ".join(f"{name} {value:.6g}" for name, value in figures.items())
            typer.echo(f"{runtime} {precision}: {values}")


def _told(row: Worker, seen_s: float) -> dict[str, object]:
    """A worker for programs."""
    named = {"id": row.id, "queues": row.queues, "bundle": row.bundle, "runtime": row.runtime}
    return named | {"draining": row.draining, "holds": row.holds, "seen_s": round(seen_s, 1)}


def _line(row: Worker, seen_s: float) -> str:
    """A worker for people; one that was killed stays in the list for a day and says so."""
    runtime = "{name} {device} {precision}, {threads} threads".format(**row.runtime) if row.runtime else "-"
    state = "lost" if seen_s > WORKER_SEEN_S else "drains" if row.draining else "works"
    holds = ",".join(row.holds) or "-"
    return f"{row.id}  {','.join(row.queues)}  seen {seen_s:.0f} s ago  {state}  {runtime}  {holds}"


def _quiet() -> Settings:
    """The settings, with a log that only speaks up when something is wrong."""
    settings = Settings()
    logs.configure(settings.model_copy(update={"log_level": "warning"}), "hilum")
    return settings


def _bundle(settings: Settings, folder: Path | None) -> Bundle:
    return bundles.read(folder or settings.bundle)
