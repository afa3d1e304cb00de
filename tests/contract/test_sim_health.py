"""What the simulated NVML says of sick cards, heard by our own rooms in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hami_dra.testing.simgpu import A100, T4, create_driver_root

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))

START = """
import asyncio, json, sys
from dataclasses import replace
from pathlib import Path
from hami_dra.gpu.events import NvmlEvents
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.testing.simgpu import A100, T4, report_double_bit_error, report_xid, write_cards

root, sim = Path(sys.argv[1]), Path(sys.argv[1]) / "run/vgpu-sim"
source = NvmlSource(root, sysfs=root / "sys", card_timeout_seconds=2.0)

async def until(answer, wanted):
    async with asyncio.timeout(20):
        while await answer() != wanted:
            await asyncio.sleep(0.02)
"""


def run(tmp_path: Path, program: str) -> Any:
    driver = create_driver_root(tmp_path, [A100, T4], BUILD)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", START + program, str(tmp_path)],
        env={**os.environ, **driver.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_events_reach_whoever_listens_and_no_earlier_one(tmp_path: Path) -> None:
    program = """
async def main():
    report_xid(sim, A100, 13)
    events, watches = asyncio.Queue(), asyncio.Queue()
    listener = NvmlEvents(source.library)
    task = asyncio.create_task(listener.run(events.put_nowait, watches.put_nowait))
    watch = await watches.get()
    report_xid(sim, T4, 79)
    report_double_bit_error(sim, A100)
    heard = [await events.get() for _ in range(2)]
    task.cancel()
    print(json.dumps([sorted(watch.cards), [[e.uuid, e.kind, e.number] for e in heard]]))

asyncio.run(main())
"""
    first, second = "GPU-74000000-5157-4a2b-9c3d-0123456789ab", "GPU-a1000000-5157-4a2b-9c3d-"
    cards, heard = run(tmp_path, program)
    assert cards[0] == first
    assert cards[1].startswith(second)
    assert heard == [[cards[0], "xid", 79], [cards[1], "ecc", 0]]


def test_a_sick_card_says_so_when_it_is_asked(tmp_path: Path) -> None:
    program = """
async def main():
    sick = replace(T4, remap_failed=True, recovery_action=2, uncorrected_errors=5)
    write_cards(sim, (A100, sick))
    found = await source.discover()
    print(json.dumps([[v.uncorrected_errors, v.remap_failed, v.recovery_action]
        for v in found.vitals.values()]))

asyncio.run(main())
"""
    assert run(tmp_path, program) == [[0, False, 0], [5, True, 2]]


def test_a_card_without_memory_of_its_own_is_found(tmp_path: Path) -> None:
    program = """
async def main():
    write_cards(sim, (A100, replace(T4, memory_info="none")))
    found = await source.discover()
    print(json.dumps([[g.memory_mib for g in found.gpus], sorted(found.bound)]))

asyncio.run(main())
"""
    assert run(tmp_path, program) == [[40960, 0], ["0000:3b:00.0", "0000:86:00.0"]]


def test_a_card_that_hangs_leaves_the_others_and_comes_back(tmp_path: Path) -> None:
    program = """
async def names():
    return [gpu.minor for gpu in (await source.discover()).gpus]

async def main():
    before = await names()
    write_cards(sim, (A100, replace(T4, hangs=True)))
    await until(names, [0])
    write_cards(sim, (A100, T4))
    await until(names, [0, 1])
    print(json.dumps(before))

asyncio.run(main())
"""
    assert run(tmp_path, program) == [0, 1]


def test_a_card_that_is_put_in_later_is_found_although_events_are_heard(tmp_path: Path) -> None:
    program = """
async def names():
    return [gpu.minor for gpu in (await source.discover()).gpus]

async def main():
    node = root / "dev/nvidia1"
    node.rename(root / "away")
    watches = asyncio.Queue()
    listener = NvmlEvents(source.library)
    task = asyncio.create_task(listener.run(print, watches.put_nowait))
    counts = [len((await watches.get()).cards), await names()]
    (root / "away").rename(node)
    counts.append(await names())
    listener.reopen()
    counts.append(len((await watches.get()).cards))
    counts.append(await names())
    task.cancel()
    print(json.dumps(counts))

asyncio.run(main())
"""
    assert run(tmp_path, program) == [1, [0], [0], 2, [0, 1]]
