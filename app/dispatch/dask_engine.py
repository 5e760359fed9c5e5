"""The engine of any number of machines: Dask's scheduler and workers, reached over mutual TLS."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from distributed import Client, Scheduler, Security, Worker, fire_and_forget

from app.dispatch.engine import Phase, Report, TaskFunction, nobody_listens
from app.dispatch.logs import line
from app.errors import EngineUnavailable

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 5.0
"""How long the scheduler may take to answer a question before there is no news."""
CONNECT_TIMEOUT_S = 2.0
"""How long one attempt to connect may take."""
RETRY_S = 0.3
"""Pause between two attempts to connect."""

_PREFIX = "bitwright-"  # Dask keeps statistics by the part before the dash, for ever: one for all tasks, not one each
_T = TypeVar("_T")


class _Unprinted(dict[str, Any]):
    """Settings on their way to workers: Dask prints the arguments of tasks that fail, and a database URL may hold a password."""

    def __repr__(self) -> str:
        return "{…}"


class DaskEngine:
    """Submits to a scheduler, to which it connects in the background, as often as it takes.

    Tasks survive this process (`fire_and_forget`), not the scheduler. For the keys it submitted it holds futures;
    about others, say of a process that died, it asks the scheduler.

    Args:
        function: Importable by name on the workers.
        settings_values: Handed to the function.
        address: Tells the scheduler's address when there is one; asked again at each attempt to connect.
        security: Certificates; connections without are refused on both sides.
    """

    def __init__(
        self,
        function: TaskFunction,
        settings_values: dict[str, Any],
        *,
        address: Callable[[], str | None],
        security: Security,
    ) -> None:
        self._function = function
        self._settings_values = _Unprinted(settings_values)
        self._address = address
        self._security = security
        self._client: Any = None
        self._futures: dict[str, Any] = {}
        self._tell: Callable[[], None] = nobody_listens
        self._farewells: set[asyncio.Task[None]] = set()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dask-engine", daemon=True)
        self._thread.start()
        self._keeper = asyncio.run_coroutine_threadsafe(_as_task(self._stay_connected()), self._loop).result()

    def submit(self, key: str, *, task_id: str, attempt: int, priority: int) -> None:
        """Start a task; which worker runs it is the scheduler's choice, which takes an idle one.

        Raises:
            EngineUnavailable: The scheduler is not connected.
        """
        self._ask(lambda client: self._submit(client, key, task_id, attempt, priority))

    def status(self, key: str) -> Report:
        """Where a key stands, by its future or else by asking the scheduler."""
        try:
            return self._ask(lambda client: self._status(client, key))
        except EngineUnavailable:
            return Report(phase=Phase.RUNNING)

    def cancel(self, key: str) -> None:
        """Kill the worker process that runs the task. Dask then starts it elsewhere, where it sees that it is not wanted."""
        try:
            self._ask(lambda client: _kill(client, _PREFIX + key))
        except EngineUnavailable as error:
            logger.warning(line("kill_failed", key=key, error=error))

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Have a function called whenever the scheduler says that a task submitted from here has ended."""
        self._tell = tell

    def capacity(self) -> int:
        """Number of the workers' threads, one for each worker."""
        try:
            return self._ask(_threads)
        except EngineUnavailable:
            return 0

    def close(self) -> None:
        """Disconnect; tasks go on."""
        self._closing = True
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _ask(self, question: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine with the client, in its event loop.

        Raises:
            EngineUnavailable: Closed, not connected, or no answer in time.
        """
        if self._closing:
            raise EngineUnavailable("the engine is closed")

        async def ask() -> _T:
            if self._client is None:
                raise EngineUnavailable("the scheduler is not connected")
            return await asyncio.wait_for(question(self._client), ANSWER_TIMEOUT_S)

        try:
            # Answers come in time; the bound is for a loop that is stopped meanwhile, which runs nothing more.
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(2 * ANSWER_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable(
                f"the scheduler does not answer: {error or type(error).__name__}"
            ) from error

    async def _submit(self, client: Any, key: str, task_id: str, attempt: int, priority: int) -> None:
        # Ended futures are of no more use: their outcome is in the database, unless they erred.
        self._futures = {k: f for k, f in self._futures.items() if f.status in ("pending", "error")}
        future = client.submit(
            self._function,
            self._settings_values,
            task_id,
            attempt,
            key=_PREFIX + key,
            pure=False,
            priority=priority,
        )
        fire_and_forget(future)  # type: ignore[no-untyped-call]
        future.add_done_callback(lambda _: self._tell())
        self._futures[key] = future

    async def _status(self, client: Any, key: str) -> Report:
        future = self._futures.get(key)
        if future is not None and future.status == "pending":
            return Report(phase=Phase.RUNNING)
        self._futures.pop(key, None)
        if future is not None and future.status == "finished":
            return Report(phase=Phase.FINISHED)
        if future is not None and future.status == "error":
            error = await future.exception()
            return Report(phase=Phase.ERROR, error=f"{type(error).__name__}: {error}")
        known = await client.run_on_scheduler(_knows, key=_PREFIX + key)
        return Report(phase=Phase.RUNNING if known else Phase.UNKNOWN)

    async def _leave(self) -> None:
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*self._farewells, return_exceptions=True)

    async def _stay_connected(self) -> None:
        told = ""
        while not self._closing:
            address = self._address()
            trouble = await self._connected(address) if address else "no scheduler is known yet"
            if trouble and trouble != told:
                logger.warning(line("engine_unreachable", address=address, error=trouble))
            told = trouble
            await asyncio.sleep(RETRY_S)

    async def _connected(self, address: str) -> str:
        """One connection, from its beginning to its end; why there was none, else nothing.

        Dask's own way to connect again is not used: it forgets the futures and keeps the rest.
        """
        client: Any = Client(  # type: ignore[no-untyped-call]
            address,
            security=self._security,
            asynchronous=True,
            set_as_default=False,
            timeout=CONNECT_TIMEOUT_S,
            name="bitwright",
        )
        try:
            await client
            self._client = client
            logger.info(line("engine_connected", address=address))
            while client.status == "running":  # noqa: ASYNC110 - an attribute, not an event
                await asyncio.sleep(0.05)
            logger.warning(line("engine_lost", address=address))
        except (OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        else:
            return ""
        finally:
            self._client = None
            self._futures.clear()
            # In the background: a client that has lost its scheduler takes two seconds to close.
            farewell = asyncio.create_task(client.close(timeout=ANSWER_TIMEOUT_S))
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)


async def _as_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


async def _threads(client: Any) -> int:
    # Without n_workers=-1 only some of the workers may be listed.
    identity = await client.scheduler.identity(n_workers=-1)
    return sum(worker["nthreads"] for worker in identity["workers"].values())


async def _kill(client: Any, key: str) -> None:
    address = await client.run_on_scheduler(_runs_on, key=key)
    if address is not None:
        await client.run(_exit_if_running, key=key, workers=[address], on_error="ignore")


def _knows(key: str, dask_scheduler: Scheduler) -> bool:
    """Runs in the scheduler."""
    return key in dask_scheduler.tasks


def _runs_on(key: str, dask_scheduler: Scheduler) -> str | None:
    """Runs in the scheduler."""
    task = dask_scheduler.tasks.get(key)
    return task.processing_on.address if task is not None and task.processing_on is not None else None


def _exit_if_running(key: str, dask_worker: Worker) -> None:
    """Runs in the worker: by now it may have gone on to other work, which must not be hit."""
    task = dask_worker.state.tasks.get(key)
    if task is not None and task.state in ("executing", "long-running", "cancelled"):
        os._exit(1)
