"""Work that is cheaper for many at once: what arrives while one group is done is the next group.

Nobody waits for others to come, but for the turn of the event loop: what tasks ask for that were
woken together is one group, and a lone job is a group of one. Made for writes whose cost is that of
becoming durable, not of being written.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, Generic, TypeVar

_MOST: Final = 16

Job = TypeVar("Job")
Result = TypeVar("Result")


class Groups(Generic[Job, Result]):
    """Does jobs in a thread, a group at a time, in the order in which they came.

    Args:
        work: Does a group, in the thread; returns for each job its result, or the error that its
            caller gets.
        executor: The thread.
        most: Jobs of a group; the first of many should not wait for the last.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Result | Exception]],
        executor: Executor,
        *,
        most: int = _MOST,
    ) -> None:
        self._work = work
        self._executor = executor
        self._most = most
        self._waiting: list[tuple[Job, asyncio.Future[Result]]] = []
        self._scheduled = False
        self._running: asyncio.Future[Sequence[Result | Exception]] | None = None

    async def do(self, job: Job) -> Result:
        """Return a job's result once its whole group is done.

        May be cancelled: the job is then done or not, like all of its group.

        Raises:
            Exception: What `work` returned, or raised for the whole group.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((job, done))
        if self._running is None and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._begin)
        return await done

    def _begin(self) -> None:
        self._scheduled = False
        # Who gave up while waiting wants nothing done.
        self._waiting = [(job, done) for job, done in self._waiting if not done.cancelled()]
        group, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        if not group:
            self._running = None
            return
        jobs = [job for job, _ in group]
        loop = asyncio.get_running_loop()
        try:
            self._running = loop.run_in_executor(self._executor, self._work, jobs)
        except RuntimeError as error:  # the thread is gone
            self._running = None
            for _, done in group:
                done.set_exception(error)
            return
        self._running.add_done_callback(lambda running: self._finish(group, running))

    def _finish(
        self,
        group: Sequence[tuple[Job, asyncio.Future[Result]]],
        running: asyncio.Future[Sequence[Result | Exception]],
    ) -> None:
        self._begin()
        if running.cancelled():
            for _, done in group:
                done.cancel()
            return
        error = running.exception()
        outcomes: Sequence[Result | BaseException]
        outcomes = [error] * len(group) if error is not None else running.result()
        for (_, done), outcome in zip(group, outcomes, strict=True):
            if done.done():
                continue
            if isinstance(outcome, BaseException):
                done.set_exception(outcome)
            else:
                done.set_result(outcome)
