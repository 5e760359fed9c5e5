"""Commands that run the service: all of it on one machine, or one program of it on each of several."""

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from app.cli.command import Command
from app.cli.failures import needs, require
from app.cli.output import json_flag, output_of
from workers.graph.allocator import ENVIRONMENT

if TYPE_CHECKING:
    from app.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

DATA_DIR = click.option(
    "--data-dir",
    metavar="DIR",
    help="Database, files, certificates, logs.  [env var: BITWRIGHT_DATA_DIR; default: ~/.local/share/bitwright]",
)
_HOST = click.option("--host", help="Address to listen on.  [env var: BITWRIGHT_HOST; default: 127.0.0.1]")
_PORT = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.  [env var: BITWRIGHT_PORT; default: 8400]",
)
_SCHEDULER = click.option(
    "--scheduler",
    "scheduler_address",
    metavar="tls://HOST:PORT",
    help="The engine's scheduler.  [env var: BITWRIGHT_SCHEDULER_ADDRESS]",
)


@click.command(
    cls=Command,
    examples=(
        "bitwright serve",
        "bitwright serve --port 0 --data-dir /var/lib/bitwright --workers 4",
    ),
)
@DATA_DIR
@_HOST
@_PORT
@click.option(
    "--workers", type=click.IntRange(0, 256), help="Worker processes; 0: one for each core, at most 8."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the dashboard in the browser.")
@json_flag
@click.pass_context
def serve(context: click.Context, /, *, open_browser: bool, **given: Any) -> None:
    """Run the whole service on this machine: API, dashboard, scheduler, workers, SQLite.

    One command, no other server. Its processes are restarted when they die; jobs go on where they were. Ctrl-C ends
    all of it. With --json a line with the address is written when it is ready.
    """
    out = output_of(context)
    require("worker", "torch", "safetensors")  # said now, not in the workers' logs
    with needs("worker"):
        from app.dispatch import logs, supervisor  # noqa: PLC0415
    logs.configure()

    def ready(url: str) -> None:
        if out.json_target is None:
            out.console.print(
                f"Bitwright is ready at {url}\nDashboard: {url}/   API: {url}/docs   Stop: Ctrl-C"
            )
            return
        sys.stdout.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()

    tune_memory()
    supervisor.serve(load_settings(**given), open_browser=open_browser, on_ready=ready)


@click.command(
    cls=Command,
    examples=("bitwright api --host 0.0.0.0 --scheduler tls://scheduler.internal:8786",),
)
@DATA_DIR
@_HOST
@_PORT
@_SCHEDULER
@json_flag
@click.pass_context
def api(context: click.Context, /, **given: Any) -> None:
    """Run one API process, dashboard and dispatcher included, against a scheduler elsewhere.

    Any number may run; one of them dispatches, and another takes over when it is lost. Needs no torch.
    """
    with needs("server"):
        from app.dispatch import processes  # noqa: PLC0415
    settings = load_settings(**given)
    _announce(context, "api")
    processes.run_api(settings)


@click.command(
    cls=Command,
    examples=("bitwright scheduler --host 10.0.0.5 --port 8786",),
)
@DATA_DIR
@click.option("--host", default="127.0.0.1", show_default=True, help="The one address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8786, show_default=True, help="0 takes a free one."
)
@json_flag
@click.pass_context
def scheduler(context: click.Context, /, data_dir: str | None, host: str, port: int) -> None:
    """Run the engine's scheduler. It keeps nothing: restart it whenever you like."""
    with needs("server"):
        from app.dispatch import processes  # noqa: PLC0415
    settings = load_settings(data_dir=data_dir)
    _announce(context, "scheduler")
    processes.run_scheduler(settings, host=host, port=port)


@click.command(
    cls=Command,
    examples=("bitwright worker --scheduler tls://scheduler.internal:8786",),
)
@DATA_DIR
@_SCHEDULER
@click.option("--host", help="The one address to listen on; by default the one that faces the scheduler.")
@click.option("--name", default="worker", show_default=True, help="For the log.")
@json_flag
@click.pass_context
def worker(context: click.Context, /, host: str | None, name: str, **given: Any) -> None:
    """Run one worker: a process that measures. It needs the database and the files as well as the scheduler.

    It ends with exit code 75 when the scheduler is gone, and is to be started again by whatever started it.
    """
    require("worker", "torch", "safetensors")
    if (
        tune_memory()
    ):  # it measures in a thread, for which only the environment at the start of the process counts
        os.execv(sys.executable, [sys.executable, "-m", "app.cli", *sys.argv[1:]])  # noqa: S606 - no shell: ourselves
    with needs("worker"):
        from app.dispatch import processes  # noqa: PLC0415
    settings = load_settings(**given)
    _announce(context, "worker")
    processes.run_worker(settings, host=host, name=name)


@click.command(
    cls=Command, examples=("bitwright migrate", "BITWRIGHT_DATABASE_URL=... bitwright migrate --json")
)
@DATA_DIR
@json_flag
@click.pass_context
def migrate(context: click.Context, /, data_dir: str | None) -> None:
    """Bring the database to the schema of this version. `bitwright serve` and `search` do so themselves."""
    out = output_of(context)
    with needs("server"):
        from sqlalchemy.engine import make_url  # noqa: PLC0415

        from app import migrate as migrations  # noqa: PLC0415
    settings = load_settings(data_dir=data_dir)
    migrations.upgrade(settings.resolved_database_url)
    shown = make_url(settings.resolved_database_url).render_as_string(hide_password=True)
    out.document({"database_url": shown, "revision": migrations.head()})
    if out.json_target is None:
        out.console.print(f"{shown} is at revision {migrations.head()}")


def _announce(context: click.Context, program: str) -> None:
    """Begin to log on standard error; for programs, a line on standard output that says who does."""
    from app.dispatch import logs  # noqa: PLC0415 - of the extras

    logs.configure()
    if output_of(context).json_target is not None:
        sys.stdout.write(json.dumps({"program": program, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()


def tune_memory() -> bool:
    """Let processes started from here keep freed memory (see `workers.graph.allocator`); whether anything was to do.

    The C library reads these variables when a process starts. What is set already is left alone.
    """
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    return bool(missing)


COMMANDS = (serve, api, scheduler, worker, migrate)


def load_settings(**given: Any) -> "Settings":
    """Settings from the environment; what was given on the command line comes first.

    Raises:
        click.UsageError: A variable's value is not acceptable; names the variable.
    """
    with needs("server"):
        from pydantic import ValidationError  # noqa: PLC0415

        from app.settings import Settings  # noqa: PLC0415
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"][:1]).upper()
        raise click.UsageError(
            f"the setting BITWRIGHT_{name} has the value {first['input']!r}: {first['msg']}"
        ) from None
