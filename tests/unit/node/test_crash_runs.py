"""The power is cut at random points of Prepare, Unprepare and the start; everything converges."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.lives import CARDS, live
from tests.unit.node.rig import make_driver_root

RUNS: Final = int(os.environ.get("HAMI_DRA_EXAMPLES", "1000"))
PARTS: Final = 4


@pytest.mark.timeout(max(120, RUNS))
@pytest.mark.parametrize("part", range(PARTS))
async def test_the_node_recovers_from_a_power_cut_anywhere(
    memory_path: Path, cluster: FakeCluster, part: int
) -> None:
    verbs: Counter[str] = Counter()
    for seed in range(part, RUNS, PARTS):
        base = memory_path / f"run-{seed}"
        base.mkdir()
        make_driver_root(base / "driver", *range(CARDS + 1))
        (base / "libvgpu.so").write_bytes(b"\x7fELF library")
        try:
            cuts = await live(base, cluster, seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        verbs.update(point.verb for point in cuts)
        shutil.rmtree(base)
    runs = len(range(part, RUNS, PARTS))
    print(f"{verbs.total()} cuts in {runs} runs: {dict(verbs)}")  # noqa: T201 - for people
    # Not laws, but runs that cut nothing would prove nothing.
    assert verbs.total() > runs
    assert {"api", "sql", "open", "rename", "mkdir", "unlink", "fsync", "nvml"} <= set(verbs)
