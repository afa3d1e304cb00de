"""One TaskGroup per process; every task has a name, and one that ends early is an error."""

import asyncio
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import structlog

from hami_dra.contract.errors import FatalError

_log = structlog.get_logger(__name__)


class Supervisor:
    """Runs a process's long-lived tasks until a signal asks it to stop.

    Shutdown story: SIGTERM or SIGINT sets ``stopping``; the code inside the ``async with`` block
    returns from `wait`, closes what it opened in its own order (sockets before state), and
    leaving the block cancels the tasks that are left.
    """

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Install the signal handlers and open the group."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel what still runs and wait for it."""
        self.stopping.set()
        for task in self._tasks:
            task.cancel()
        try:
            await self._group.__aexit__(kind, error, traceback)
        finally:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that is meant to live as long as the process.

        If it returns or raises, the whole process ends with that error: a service without one of
        its loops only looks alive.
        """
        task = self._group.create_task(_guard(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Wait until the process is asked to stop."""
        await self.stopping.wait()

    def _stop(self, number: signal.Signals) -> None:
        _log.info("process.stopping", signal=signal.Signals(number).name)
        self.stopping.set()


async def _guard(name: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("task.failed", task=name)
        raise
    raise FatalError(f"the task {name!r} returned although it should run for ever")
