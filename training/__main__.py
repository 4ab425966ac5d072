"""`hilum-train`: index, prepare, train, calibrate, evaluate and bundle a data set of radiographs, in this order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from shared import bundles
from shared.bundles import Bundle, Preprocessing
from training import (
    audit,
    audit_leave_one_out,
    bundle,
    calibrate,
    evaluate,
    index,
    prepare,
    sample,
    screen,
    train,
    train_lungs,
    train_view,
)
from worker.pipeline.predictor import Predictor
from worker.runtimes.choose import open_predictor
from worker.runtimes.torch import TorchPredictor

CONFIGS = Path(__file__).parent / "configs"
NETWORKS = "resnet50,densenet121,efficientnet_b0"

app = typer.Typer(help="Train a Hilum bundle, step by step.", no_args_is_help=True, add_completion=False)

Data = Annotated[Path, typer.Option(help="folder of the data set", envvar="HILUM_TRAIN_DATA", file_okay=False)]
Runs = Annotated[Path, typer.Option(help="folder of everything that training writes")]
Runtime = Annotated[str, typer.Option(help="auto, openvino or torch")]
Stored = Annotated[Path | None, typer.Option("--bundle", help="a bundle; default: the draft in runs")]
Others = Annotated[
    Path | None, typer.Option(help="a folder of pictures that are no chest films, KIND/FILE", file_okay=False)
]
Threads = Annotated[int, typer.Option(help="cores of this process; 0: all")]
Configs = Annotated[Path, typer.Option(help="folder of the *.toml configurations")]


@app.command("index")
def index_command(
    data: Data,
    runs: Runs = Path("runs"),
    more: Annotated[list[Path] | None, typer.Option(help="further folders, for training only", file_okay=False)] = None,
) -> None:
    """List the images with their classes, groups and splits; leave out copies across splits and what is unreadable."""
    items, found = screen.screen(index.build(data, more or ()), data, runs / "thumbnails.npz")
    found = [*screen.overlooked([data, *(more or ())]), *found]
    index.write(items, runs / "index.csv")
    screen.write(found, runs / screen.LEFT_OUT)
    (runs / "index-report.md").write_text(screen.report(items, found), encoding="utf-8")
    typer.echo(f"{len(items)} images, fingerprint {index.fingerprint(items)[:12]}")
    for reason, count in sorted(Counter(f.reason for f in found if f.left_out).items()):
        typer.echo(f"left out: {count} ({reason})")


@app.command("lungs")
def lungs_command(
    data: Data,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    folds: Annotated[
        list[int] | None, typer.Option("--without-fold", help="only the network without this fold")
    ] = None,
    threads: Threads = 0,
) -> None:
    """Train the lungs network on the masks of the index, and one without each fold for `prepare`."""
    items = index.read(runs / "index.csv")
    if threads:
        train.use_threads(threads)
    for fold in folds or (None, *range(index.FOLDS)):
        out = _lungs_folder(runs, fold)
        typer.echo(train_lungs.train(items, data, configs / "lungs.toml", out, without_fold=fold))


@app.command("view")
def view_command(
    data: Data,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    others: Others = None,
    threads: Threads = 0,
) -> None:
    """Train the view network: whether a picture is a chest film, upright, frontal and not inverted."""
    if threads:
        train.use_threads(threads)
    items = index.read(runs / "index.csv")
    typer.echo(train_view.train(items, data, configs / "view.toml", runs / "view", others=others))


@app.command("prepare")
def prepare_command(
    data: Data,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Find the lungs of every image and keep the tensors that the classifiers see."""
    weights = runs / "lungs" / "lungs.safetensors"
    network = prepare.lungs_network(configs / "lungs.toml", weights)
    items = index.read(runs / "index.csv")
    without = [_lungs_folder(runs, fold) / weights.name for fold in range(index.FOLDS)]
    out = runs / "prepared"
    prepare.prepare(items, data, network, weights, Preprocessing(), out, without=without, processes=processes)


@app.command("train")
def train_command(
    names: Annotated[list[str], typer.Argument(help="configurations, one after the other")],
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    minutes: Annotated[float, typer.Option(help="stop after this long each; 0: when the work is done")] = 0.0,
    threads: Threads = 0,
) -> None:
    """Train classifiers on the prepared tensors."""
    items = index.read(runs / "index.csv")
    classes = index.classes(items)
    if threads:
        train.use_threads(threads)
    for name in names:
        path = train.train(items, runs / "prepared", configs / f"{name}.toml", classes, runs / name, minutes=minutes)
        typer.echo(path)


@app.command("calibrate")
def calibrate_command(
    data: Data,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    name: Annotated[str, typer.Option(help="name of the bundle")] = "hilum-cxr",
    version: Annotated[str, typer.Option(help="version of the bundle")] = "1.0.0",
    networks: Annotated[str, typer.Option(help="configurations of the ensemble, in its order")] = NETWORKS,
    runtime: Runtime = "auto",
) -> None:
    """Draft a bundle of the trained weights and decide its gate, temperature and thresholds on the validation split."""
    items = index.read(runs / "index.csv")
    made = bundle.draft(items, runs, configs, networks.split(","), name=name, version=version)
    predictor, config = _predictor(made, runs, runtime), configs / "calibration.toml"
    made = calibrate.calibrate(made, predictor, items, data, runs / "prepared", config)
    typer.echo(made.manifest.calibration.model_dump_json(indent=1))


@app.command("evaluate")
def evaluate_command(
    data: Data,
    runs: Runs = Path("runs"),
    stored: Stored = None,
    runtime: Runtime = "auto",
    others: Others = None,
) -> None:
    """Compute every figure of a stored bundle on the test split into its metrics.json and report/."""
    made = bundles.read(stored or runs / "bundle")
    items = index.read(runs / "index.csv")
    predictor = _predictor(made, runs, runtime)
    known = predictor.runtime
    reference = None if (known.name, known.precision) == ("torch", "f32") else TorchPredictor(made, precision="f32")
    figures = evaluate.evaluate(
        made, predictor, items, data, runs / "prepared", reference=reference, others=others, runs=runs
    )
    typer.echo(json.dumps(evaluate.summary(figures), indent=1))


@app.command("leave-one-out")
def leave_one_out_command(
    sources: Annotated[list[str] | None, typer.Argument(help="sources, or `reference`; default: all")] = None,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    minutes: Annotated[float, typer.Option(help="of each training; 0: when the work is done")] = 0.0,
    threads: Threads = 0,
) -> None:
    """Train a small network without each source, for `audit` to say what it makes of that source's films."""
    items = index.read(runs / "index.csv")
    if threads:
        train.use_threads(threads)
    found = audit_leave_one_out.leave_one_out(
        items, runs / "prepared", configs / "leave-one-out.toml", index.classes(items), runs / audit.LEAVE_ONE_OUT,
        minutes=minutes, sources=sources or (),
    )  # fmt: skip
    typer.echo(json.dumps(found, indent=1))


@app.command("audit")
def audit_command(
    data: Data,
    runs: Runs = Path("runs"),
    stored: Stored = None,
    runtime: Runtime = "auto",
) -> None:
    """Ask of a stored bundle whether it reads lungs, into its audit.json."""
    made = bundles.read(stored or runs / "bundle")
    items = index.read(runs / "index.csv")
    found = audit.audit(made, _predictor(made, runs, runtime), items, data, runs / "prepared", runs)
    typer.echo("\n\n".join(found["explained"].values()))


@app.command("bundle")
def bundle_command(
    runs: Runs = Path("runs"),
    out: Annotated[Path, typer.Option(help="folder of the released bundles")] = Path("bundles"),
) -> None:
    """Release the calibrated and evaluated draft."""
    released = bundle.release(bundles.read(runs / "bundle"), out)
    typer.echo(f"{released.identity} in {released.root}")


@app.command("sample")
def sample_command(
    data: Data,
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    out: Annotated[Path, typer.Option(help="the PNG to write")] = Path("docs/sample/synthetic-radiograph.png"),
    seed: Annotated[int, typer.Option(help="of the draw")] = 1,
) -> None:
    """Draw a synthetic radiograph, nobody's image, from the freely licensed training images."""
    weights = runs / "lungs" / "lungs.safetensors"
    network = prepare.lungs_network(configs / "lungs.toml", weights)
    sample.save(sample.draw(index.read(runs / "index.csv"), data, network, weights, seed), out)
    typer.echo(out)


def _lungs_folder(runs: Path, without_fold: int | None) -> Path:
    return runs / ("lungs" if without_fold is None else f"lungs-without-{without_fold}")


def _predictor(made: Bundle, runs: Path, runtime: str) -> Predictor:
    """The runtime that serves, with the compiled graph kept among the runs."""
    return open_predictor(made, cache=runs / "cache", runtime=runtime)


def main() -> None:
    """The entry point of `hilum-train`."""
    app()


if __name__ == "__main__":
    main()
