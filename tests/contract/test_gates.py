"""libvgpu obeys the node's gate: nothing is launched behind it, and opening it wakes at once."""

import asyncio
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hami_dra.contract import grant
from hami_dra.contract.region import FILE_SIZE
from hami_dra.node import gates
from hami_dra.node.gates import Contest, Place
from hami_dra.node.regionfile import RegionFile, open_region
from hami_dra.policy.shares import GrantName, ShareName
from hami_dra.service.clock import SystemClock

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
UUID = "GPU-a1000000-5157-4a2b-9c3d-0123456789ab"
ROUNDS = 20
PATIENCE_SECONDS = 20.0
STEP_SECONDS = 0.0002
FUTEX_SECONDS = 0.05
"""After which libvgpu looks by itself."""


@contextmanager
def working(
    tmp_path: Path, on_start: Callable[[int], None] = lambda _: None, **changes: Any
) -> Iterator[RegionFile]:
    """Keep a card busy through libvgpu, with half of its time, and yield the open region.

    Args:
        tmp_path: For the card and the region.
        on_start: Called with the process's number.
        changes: Of what is granted.
    """
    for name in ("sim", "dev", "grants/uid_gpu/region"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "sim/cards.ini").write_text(
        f"[card]\nuuid = {UUID}\nname = card\nmemory_mib = 40960\npci = 0000:3b:00.0\n"
    )
    facts: dict[str, Any] = {"cores_percent": 50, "core_policy": "force"} | changes
    device = grant.GrantDevice(UUID, 0, **facts)
    one = grant.Grant("uid", "gpu", (device,))
    (tmp_path / "grants/uid_gpu/grant").write_bytes(grant.encode_grant(one))
    program = subprocess.Popen(  # noqa: S603 - built here
        [BUILD / "probe/cuprobe", "work", "1000", "60"],
        stdout=subprocess.DEVNULL,
        env={
            "LD_LIBRARY_PATH": str(BUILD / "sim"),
            "LD_PRELOAD": str(BUILD / "src/libvgpu-test.so"),
            "VGPU_SIM_DIR": str(tmp_path / "sim"),
            "VGPU_SIM_DEV": str(tmp_path / "dev"),
            "VGPU_GRANT_ROOT": str(tmp_path / "grants"),
        },
    )
    on_start(program.pid)
    try:
        directory = tmp_path / "grants/uid_gpu/region"
        wait_until((directory / "region").exists)
        region = open_region(directory, write=True)
        assert region is not None
        with region:
            launches(region)
            yield region
    finally:
        program.kill()
        program.wait()


def wait_until(done: Callable[[], object]) -> float:
    """Return when it is so; another process's doing, which says nothing by itself."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(STEP_SECONDS)
    return time.monotonic()


def launches(region: RegionFile) -> None:
    """Return when somebody has launched, charged or not."""
    region.ask_launches(0)
    wait_until(lambda: not region.read_launches(0)[1])


def stays(region: RegionFile, seconds: float) -> bool:
    """Whether nothing is launched for so long."""
    before = region.read_launches(0)[0]
    time.sleep(seconds)  # that nothing happens is no event
    return region.read_launches(0)[0] == before


def close(region: RegionFile, value: int) -> None:
    """Close the gate, and return when launches have come to an end."""
    region.write_gate(0, value)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not stays(region, 2 * FUTEX_SECONDS):
        assert time.monotonic() < deadline


def test_a_gate_that_opens_lets_launches_go_at_once(tmp_path: Path) -> None:
    delays = []
    with working(tmp_path) as region:
        for number in range(1, ROUNDS + 1):
            close(region, number)
            before = region.read_launches(0)[0]
            opened = time.monotonic()
            region.write_gate(0, 0)
            delays.append(wait_until(lambda: region.read_launches(0)[0] != before) - opened)  # noqa: B023
    # Without being woken it would be half of what it sleeps, as a rule.
    assert statistics.median(delays) < FUTEX_SECONDS / 10, delays


def test_a_gate_that_nobody_renews_opens_by_itself(tmp_path: Path) -> None:
    with working(tmp_path) as region:
        close(region, 7)
        before = region.read_launches(0)[0]
        closed = time.monotonic()
        assert wait_until(lambda: region.read_launches(0)[0] != before) - closed > 1
        for value in range(8, 13):
            close(region, value)
            assert stays(region, 0.7)


def test_a_gate_does_not_hold_who_comes_first(tmp_path: Path) -> None:
    with working(tmp_path, priority=0) as region:
        region.write_gate(0, 7)
        assert not stays(region, 0.5)


@pytest.mark.parametrize(
    "changes", [{}, {"cores_percent": 0}, {"core_policy": "default", "alone": True}]
)
def test_whoever_launches_answers_charged_or_not(tmp_path: Path, changes: dict[str, Any]) -> None:
    with working(tmp_path, **changes) as region:
        for _ in range(ROUNDS):
            launches(region)
        charged = region.read_launches(0)[0]

    assert (charged > 0) == (not changes)


@pytest.mark.parametrize("changes", [{}, {"cores_percent": 0}])
async def test_the_first_launch_of_a_higher_priority_closes_the_gate_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(gates, "STEP_SECONDS", 1.0)  # who is not woken takes half of it
    (tmp_path / "low").mkdir()
    (tmp_path / "low/region").write_bytes(bytes(FILE_SIZE))
    waits = Place(ShareName(GrantName("low", "gpu"), 0), tmp_path / "low")
    rival = Place(ShareName(GrantName("uid", "gpu"), 0), tmp_path / "grants/uid_gpu/region")
    pids: list[int] = []
    delays = []
    with working(tmp_path, pids.append, **changes):
        keeper = gates.Gates(SystemClock())
        keeper.watch([Contest(waits, (rival,))])
        task = asyncio.create_task(keeper.run())
        try:
            for _ in range(5):
                os.kill(pids[0], signal.SIGSTOP)
                await asyncio.to_thread(wait_until, lambda: not keeper.held())
                os.kill(pids[0], signal.SIGCONT)
                begin = time.monotonic()
                delays.append(await asyncio.to_thread(wait_until, keeper.held) - begin)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert statistics.median(delays) < gates.STEP_SECONDS / 10, delays
