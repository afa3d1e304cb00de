"""A claim is worked on by one at a time, whatever process it is in."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.kubeletplugin.locks import ClaimLocks

HOLDER = """
import asyncio, sys
from pathlib import Path
from hami_dra.kubeletplugin.locks import ClaimLocks

async def main():
    async with ClaimLocks(Path(sys.argv[1])).hold(sys.argv[2]):
        print("held", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


def start_holder(path: Path, uid: str) -> "subprocess.Popen[str]":
    """Hold a claim's lock in a process of its own; returns once it does."""
    holder = subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-c", HOLDER, str(path), uid],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_is_held_against_other_processes_and_freed_when_its_holder_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "claims.lock"

    async def run() -> None:
        locks = ClaimLocks(path)
        with start_holder(path, "mine") as holder:
            async with locks.try_hold("mine") as held, locks.hold("another"):
                assert not held
            waiting = asyncio.create_task(hold_once(locks, "mine"))
            await asyncio.sleep(0)
            assert not waiting.done()
            holder.kill()
            async with asyncio.timeout(5):
                await waiting
        async with locks.try_hold("mine") as held:
            assert held

    asyncio.run(run())


async def hold_once(locks: ClaimLocks, uid: str) -> None:
    async with locks.hold(uid):
        pass


@pytest.mark.parametrize("shared", [True, False])
async def test_a_lock_is_held_against_tasks_of_this_process(
    tmp_path: Path, *, shared: bool
) -> None:
    locks = ClaimLocks(tmp_path / "claims.lock" if shared else None)
    order: list[str] = []

    async def work(name: str) -> None:
        async with locks.hold("claim"):
            order.append(f"+{name}")
            await asyncio.sleep(0)
            order.append(f"-{name}")

    async with locks.try_hold("claim") as first, locks.try_hold("claim") as second:
        assert (first, second) == (True, False)
        tasks = [asyncio.create_task(work(name)) for name in "ab"]
        await asyncio.sleep(0)
        assert order == []
    await asyncio.gather(*tasks)

    assert order == ["+a", "-a", "+b", "-b"]


async def test_waiting_for_another_process_can_be_cancelled(tmp_path: Path) -> None:
    one, other = (ClaimLocks(tmp_path / "claims.lock") for _ in range(2))
    async with one.hold("claim"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await hold_once(other, "claim")
    async with other.try_hold("claim") as held:
        assert held


async def test_holding_leaves_no_descriptor_open(tmp_path: Path) -> None:
    locks = ClaimLocks(tmp_path / "claims.lock")
    await hold_once(locks, "warm")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all that is wanted
    for number in range(20):
        await hold_once(locks, f"claim-{number}")

    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


async def test_a_place_that_cannot_be_written_is_a_passing_fault(tmp_path: Path) -> None:
    locks = ClaimLocks(tmp_path / "nowhere" / "claims.lock")

    with pytest.raises(RetryError, match=r"claims\.lock"):
        await hold_once(locks, "claim")
