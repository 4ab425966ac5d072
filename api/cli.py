"""`hilum`: the operator's commands; those of other rooms are found by entry point and imported only when needed."""

from __future__ import annotations

import signal
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from typer.core import TyperGroup

from api import backup, orphans, records
from shared import logs
from shared.errors import HilumError
from shared.settings import Settings, variable

GROUP = "hilum.commands"


class Commands(TyperGroup):
    """Our commands, and those of the installed rooms; a room that cannot be imported only lacks its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, ours first."""
        return [*super().list_commands(ctx), *_others()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; the other rooms are imported only when it is none of ours."""
        return super().get_command(ctx, cmd_name) or _others().get(cmd_name)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hilum: a chest X-ray goes in, a durable and explained diagnosis comes out. For research; no medical device.",
)
for name, group in (*records.GROUPS.items(), ("storage", orphans.app)):
    app.add_typer(group, name=name)
for command in (records.purge, backup.backup, backup.restore):
    app.command()(command)


def main() -> None:
    """Run the command line; an error that we foresaw is one sentence and exit code 1, never a traceback."""
    try:
        app()
    except HilumError as error:
        _end(error.detail)
    except ValidationError as error:
        _end("; ".join(f"{_named(e)}: {e['msg']}" for e in error.errors()))
    except SQLAlchemyError as error:
        _end(f"The database does not answer, or `hilum migrate` has not run: {getattr(error, 'orig', None) or error}")


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to bind; else HILUM_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any. Else PORT, HILUM_PORT.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Analyses at the same time; they share the cores.")] = 1,
    key_file: Annotated[Path | None, typer.Option(help="Keep an API key that works in this file.")] = None,
) -> None:
    """Start everything (broker, API, workers, sweeper) and stay until Ctrl-C."""
    from api import up as serve

    settings = _settings(host=host, port=port)
    logs.configure(settings.model_copy(update={"log_level": "warning"}), "up")
    raise typer.Exit(serve.up(settings, workers=workers, key_file=key_file))


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to bind; else HILUM_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; else PORT, HILUM_PORT.")] = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket to inherit.")] = None,
) -> None:
    """Serve HTTP alone."""
    from api import serve

    serve.serve(_settings(host=host, port=port), fd)


@app.command()
def sweep(once: Annotated[bool, typer.Option(help="One round, then exit.")] = False) -> None:
    """Free what dead workers held, ring for what waits, play test jobs, purge what is past its time; safe in copies."""
    from api import chores
    from api import sweep as sweeping
    from shared.db import open_database
    from shared.queue import ringer
    from shared.storage import open_storage

    settings = _settings()
    logs.configure(settings, "sweep")
    database = open_database(settings, ring=ringer(settings))
    if once:
        if sweeping.once(database, settings, sweeping.Sweeper()):
            chores.once(chores.Chores(database, open_storage(settings), settings))
        return
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    sweeping.sweep(database, settings, stopping)


@app.command()
def migrate() -> None:
    """Bring the database to the newest schema; does nothing when it is."""
    from api import migrate as migrating

    settings = _settings()
    logs.configure(settings, "migrate")
    migrating.migrate(settings)


@app.command()
def demo(
    image: Annotated[Path | None, typer.Argument(help="A radiograph; else the synthetic sample.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo-output"),
) -> None:
    """Start everything, analyse one radiograph over HTTP, show the answer, stop everything."""
    from api import demo as showing

    raise typer.Exit(showing.demo(image, out))


def _settings(**given: Any) -> Settings:
    """The settings of the environment, and what the command line says instead."""
    return Settings().model_copy(update={name: value for name, value in given.items() if value is not None})


def _others() -> dict[str, Any]:
    """The commands that other rooms offer, by name."""
    found: dict[str, Any] = {}
    for entry in entry_points(group=GROUP):
        try:
            found |= typer.main.get_group(entry.load()).commands
        except ImportError as error:
            typer.echo(f"hilum: the commands of `{entry.name}` are left out: {error}", err=True)
    return found


def _named(error: Any) -> str:
    """The environment variable that holds a wrong value."""
    place = str(error["loc"][0]) if error["loc"] else "settings"
    return variable(place) if place in Settings.model_fields else place


def _end(sentence: str) -> None:
    typer.echo(f"hilum: {sentence}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
