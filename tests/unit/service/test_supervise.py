"""A process ends when it is told to, and when one of its loops does."""

import asyncio
import os
import signal

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.service.supervise import Supervisor


async def test_sigterm_ends_the_wait_and_cancels_the_tasks() -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    async def forever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.timeout(5), Supervisor() as supervisor:
        supervisor.spawn("forever", forever())
        await started.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await supervisor.wait()

    assert cancelled.is_set()


async def test_a_task_that_returns_ends_the_process_with_its_name() -> None:
    async def brief() -> None:
        return

    async def process() -> None:
        async with asyncio.timeout(5), Supervisor() as supervisor:
            supervisor.spawn("brief", brief())
            await supervisor.wait()

    with pytest.raises(ExceptionGroup) as caught:
        await process()

    assert caught.group_contains(FatalError, match="'brief' returned")
