"""Jobs in groups: order, errors, and who gave up."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hami_dra.service.groups import Groups


class Work:
    """Notes the groups; the first one waits until it may go on."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go_on = threading.Event()

    def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        """Multiply even numbers by ten."""
        self.groups.append(list(jobs))
        if len(self.groups) == 1:
            assert self.go_on.wait(10)
        if 99 in jobs:
            raise OSError("all of it")
        return [ValueError(f"{job} is odd") if job % 2 else job * 10 for job in jobs]


async def _start(groups: Groups[int, int], first: int, *jobs: int) -> list[asyncio.Task[int]]:
    """Let the first job begin alone, and the others come meanwhile."""
    tasks = [asyncio.create_task(groups.do(first))]
    for _ in range(2):  # to be asked for, and to begin
        await asyncio.sleep(0)
    tasks += [asyncio.create_task(groups.do(job)) for job in jobs]
    await asyncio.sleep(0)
    return tasks


async def test_what_is_asked_for_in_one_turn_is_one_group() -> None:
    work = Work()
    work.go_on.set()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor)
        assert await asyncio.gather(*(groups.do(job) for job in (0, 2, 4))) == [0, 20, 40]
    assert work.groups == [[0, 2, 4]]


async def test_without_its_thread_nobody_waits_for_ever() -> None:
    executor = ThreadPoolExecutor(1)
    groups: Groups[int, int] = Groups(Work(), executor)
    executor.shutdown()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shutdown"):
            await groups.do(0)


async def test_what_arrives_meanwhile_is_the_next_group() -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor)
        tasks = await _start(groups, 0, 2, 4, 6)
        work.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 20, 40, 60]
        assert await groups.do(8) == 80
    assert work.groups == [[0], [2, 4, 6], [8]]


async def test_a_group_has_its_limit() -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor, most=2)
        tasks = await _start(groups, 0, 2, 4, 6)
        work.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 20, 40, 60]
    assert work.groups == [[0], [2, 4], [6]]


async def test_an_error_is_of_its_job_alone() -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor)
        tasks = await _start(groups, 0, 2, 3, 4)
        work.go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(result) for result in results] == ["0", "20", "3 is odd", "40"]


async def test_an_error_of_the_work_is_of_its_whole_group_and_of_no_other() -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor)
        tasks = await _start(groups, 0, 2, 99)
        work.go_on.set()
        assert await tasks[0] == 0
        for task in tasks[1:]:
            with pytest.raises(OSError, match="all of it"):
                await task
        assert await groups.do(4) == 40


async def test_who_gives_up_while_waiting_wants_nothing_done() -> None:
    work = Work()
    with ThreadPoolExecutor(1) as executor:
        groups: Groups[int, int] = Groups(work, executor)
        first, second, third = await _start(groups, 0, 2, 4)
        second.cancel()
        await asyncio.sleep(0)
        first.cancel()  # runs already: its result is nobody's
        await asyncio.sleep(0)
        work.go_on.set()
        assert await third == 40
        assert await groups.do(6) == 60
    assert work.groups == [[0], [4], [6]]
    assert first.cancelled()
    assert second.cancelled()
