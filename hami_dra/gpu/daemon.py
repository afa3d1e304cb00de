"""Blocking calls that may never return.

A thread that never returns costs this room its answer, never the process its exit (a
ThreadPoolExecutor's thread would be waited for).
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_in_daemon_thread(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Start a call in a thread of its own and return its answer to come."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    # Someone who timed out has left; the result that comes too late is nobody's error.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def succeed(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def fail(error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - handed over to the waiting task as it is
            tell(loop, fail, error)
        else:
            tell(loop, succeed, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def tell(loop: asyncio.AbstractEventLoop, listener: Callable[[T], None], value: T) -> None:
    """Call a listener in the loop's thread; nobody listens when the loop has ended."""
    try:
        loop.call_soon_threadsafe(listener, value)
    except RuntimeError:
        if not loop.is_closed():
            raise
