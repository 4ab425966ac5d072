"""`hilum-train`: index, prepare, train, calibrate, evaluate and bundle a data set of radiographs, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.bundles import Preprocessing
from training import index, prepare, train, train_lungs

CONFIGS = Path(__file__).parent / "configs"

app = typer.Typer(help="Train a Hilum bundle, step by step.", no_args_is_help=True, add_completion=False)

Data = Annotated[Path, typer.Option(help="folder of the data set", envvar="HILUM_TRAIN_DATA", file_okay=False)]
Runs = Annotated[Path, typer.Option(help="folder of everything that training writes")]
Configs = Annotated[Path, typer.Option(help="folder of the *.toml configurations")]


@app.command("index")
def index_command(data: Data, runs: Runs = Path("runs")) -> None:
    """List the images with their classes, groups and splits."""
    items = index.build(data)
    index.write(items, runs / "index.csv")
    typer.echo(f"{len(items)} images, fingerprint {index.fingerprint(items)[:12]}")


@app.command("lungs")
def lungs_command(data: Data, runs: Runs = Path("runs"), configs: Configs = CONFIGS) -> None:
    """Train the lungs network on the masks of the index."""
    typer.echo(train_lungs.train(index.read(runs / "index.csv"), data, configs / "lungs.toml", runs / "lungs"))


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
    out = runs / "prepared"
    prepare.prepare(items, data, network, weights, Preprocessing(), out, processes=processes)


@app.command("train")
def train_command(
    names: Annotated[list[str], typer.Argument(help="configurations, one after the other")],
    runs: Runs = Path("runs"),
    configs: Configs = CONFIGS,
    minutes: Annotated[float, typer.Option(help="stop after this long each; 0: when the work is done")] = 0.0,
    threads: Annotated[int, typer.Option(help="cores of this process; 0: all")] = 0,
) -> None:
    """Train classifiers on the prepared tensors."""
    items = index.read(runs / "index.csv")
    classes = index.classes(items)
    if threads:
        train.use_threads(threads)
    for name in names:
        path = train.train(items, runs / "prepared", configs / f"{name}.toml", classes, runs / name, minutes=minutes)
        typer.echo(path)


def main() -> None:
    """The entry point of `hilum-train`."""
    app()


if __name__ == "__main__":
    main()
