"""The programs of the service: scheduler, worker, API.

`bitwright serve` supervises them; on several machines each is started on its own, by whatever keeps processes running
there.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import socket
import sys
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import dask
import uvicorn
from distributed import Scheduler, Status, Worker

from app.db import get_database
from app.dispatch import logs, run_files, tls
from app.dispatch.errors import StartRefused
from app.dispatch.local_engine import THREAD_VARIABLES
from app.dispatch.logs import line
from app.dispatch.parent import die_with_parent
from app.dispatch.shard import preload
from app.settings import Settings

logger = logging.getLogger(__name__)

LOST_SCHEDULER = os.EX_TEMPFAIL
"""Exit code of a worker whose scheduler is gone: it is to be started again."""
GRACEFUL_STOP_S = 3
"""How long the API lets open requests finish when it is stopped."""

_LOOPBACK_HTTP = "127.0.0.1:0"
_DASK = {
    "distributed.comm.require-encryption": True,
    "distributed.comm.timeouts.connect": "15s",
    # Workers may die for reasons that are not the task's: a task is started again elsewhere so often, and what then
    # counts as one failure in its row.
    "distributed.scheduler.allowed-failures": 3,
    # Torch may hold the interpreter for long; a frozen machine is noticed after this time.
    "distributed.scheduler.worker-ttl": "300s",
    "distributed.admin.tick.limit": "60s",
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class _Scheduler(Scheduler):
    """Without the HTTP server that otherwise listens even with the dashboard switched off."""

    def start_http_server(self, *_args: Any, **_kwargs: Any) -> None:
        """Not started."""


class _Worker(Worker):
    """Without the HTTP server."""

    def start_http_server(self, *_args: Any, **_kwargs: Any) -> None:
        """Not started."""


def run_scheduler(settings: Settings, host: str = "127.0.0.1", port: int = 0) -> None:
    """Run the engine's scheduler until it is stopped.

    Args:
        settings: Data directory and certificates.
        host: The one address to listen on.
        port: 0 takes a free one; ``run/scheduler.json`` tells which.

    Raises:
        StartRefused: Other machines are invited to a SQLite database, or the certificates are not usable.
    """
    require_shared_database(settings, host)
    security = tls.security(tls.ensure_tls(settings.resolved_tls_dir, [host, socket.gethostname()]))

    async def main() -> None:
        async with _Scheduler(
            host=host,
            port=port,
            protocol="tls",
            security=security,
            dashboard=False,
            dashboard_address=_LOOPBACK_HTTP,
        ) as scheduler:
            run_files.write(settings, "scheduler", address=scheduler.address)
            await scheduler.finished()

    with dask.config.set(_DASK):
        asyncio.run(main())


def run_worker(settings: Settings, *, host: str | None = None, name: str = "worker") -> None:
    """Run one worker until its scheduler is gone; ends with exit code 75 then, and is to be started again.

    Args:
        settings: The scheduler's address (or, on its machine, the data directory), certificates, threads.
        host: The one address to listen on; by default the one by which this machine reaches the scheduler.
        name: For the log.

    Raises:
        StartRefused: The scheduler is on another machine and the database is SQLite, or the certificates are not usable.
    """
    for variable in THREAD_VARIABLES:  # before torch is imported
        os.environ[variable] = str(settings.worker_threads)
    preload(settings.worker_threads)
    asyncio.run(_worker(settings, host, f"{name}-{os.getpid()}"))
    os._exit(
        LOST_SCHEDULER
    )  # a task's thread may be in the middle of an entry, which is not wanted from here any more


async def _worker(settings: Settings, host: str | None, name: str) -> None:
    address = await _scheduler_address(settings)
    scheduler_host = urlsplit(address).hostname or ""
    require_shared_database(settings, scheduler_host)
    scratch = run_files.run_dir(settings) / "scratch"
    with dask.config.set(_DASK | {"temporary-directory": str(scratch)}):
        worker = _Worker(
            address,
            nthreads=1,
            name=name,
            host=host or _own_address(scheduler_host),
            protocol="tls",
            security=tls.security(tls.ensure_tls(settings.resolved_tls_dir)),
            memory_limit=0,
            dashboard=False,
            dashboard_address=_LOOPBACK_HTTP,
        )
        await worker
        while worker.status in (Status.running, Status.paused):  # noqa: ASYNC110 - an attribute, not an event
            await asyncio.sleep(0.05)
        # Closing in order would wait for the entry in hand, which is not wanted from here any more.
        logger.warning(line("scheduler_lost", address=address))
        os._exit(LOST_SCHEDULER)


def _own_address(peer: str) -> str:
    """The address by which this machine reaches another one. Nothing is sent."""
    family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


async def _scheduler_address(settings: Settings) -> str:
    while (address := run_files.scheduler_address(settings)) is None:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.05)
    return address


def run_api(settings: Settings, *, name: str = "api") -> None:
    """Run the API, with its dispatcher, until it is stopped.

    Args:
        settings: Everything.
        name: ``run/<name>.json`` tells its URL.

    Raises:
        StartRefused: The scheduler is on another machine and the database is SQLite, or the port is taken.
    """
    from app.main import create_app  # noqa: PLC0415 - the web framework is for this process alone

    if settings.scheduler_address:
        require_shared_database(settings, urlsplit(settings.scheduler_address).hostname or "")
    with contextlib.closing(bind(settings.host, settings.port)) as listener:
        port = listener.getsockname()[1]
        run_files.write(settings, name, url=url_of(settings.host, port), port=port)
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACEFUL_STOP_S,
        )
        uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A socket for the API.

    Raises:
        StartRefused: The address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartRefused(
            f"the API cannot listen on {host} port {port}: {error.strerror}; choose another port, or 0 for a free one",
            "port",
            port,
        ) from error
    return listener


def url_of(host: str, port: int) -> str:
    """Where a browser on this machine finds the API."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def require_shared_database(settings: Settings, scheduler_host: str) -> None:
    """Workers on other machines write their rows themselves, which SQLite cannot offer them.

    Raises:
        StartRefused: The scheduler's host is not this machine's loopback and the database is SQLite.
    """
    if is_loopback(scheduler_host) or not get_database(settings.resolved_database_url).is_sqlite:
        return
    raise StartRefused(
        f"a scheduler at {scheduler_host!r} invites workers of other machines, and they cannot share the SQLite "
        f"database {settings.resolved_database_url}",
        "database_url",
        settings.resolved_database_url,
        "a PostgreSQL URL (postgresql+psycopg://…), or a scheduler at 127.0.0.1",
    )


def is_loopback(host: str) -> bool:
    """Whether nobody else can reach a host name or address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(arguments: list[str] | None = None) -> int:
    """``python -m app.dispatch.processes scheduler|worker|api``, settings from the environment."""
    parser = argparse.ArgumentParser(prog="app.dispatch.processes", description=main.__doc__)
    parser.add_argument("program", choices=["scheduler", "worker", "api"])
    parser.add_argument("--name", help="in logs and run files; the program's by default")
    chosen = parser.parse_args(arguments)
    die_with_parent()
    faulthandler.enable()  # a crash in compiled code leaves its stack in the log
    logs.configure()
    settings = Settings()
    try:
        if chosen.program == "scheduler":
            run_scheduler(settings)
        elif chosen.program == "worker":
            run_worker(settings, name=chosen.name or "worker")
        else:
            run_api(settings, name=chosen.name or "api")
    except StartRefused as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    except KeyboardInterrupt:
        return 128 + 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
