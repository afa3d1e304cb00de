"""Limits that the driver holds: set through nvidia-ml-py, felt by programs of the control group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hami_dra.testing.simgpu import A100, T4, write_cards

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="limits are for root to set")

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.memorylimits import DriverMemoryLimits

async def main():
    root, uuid, steps = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    limits = DriverMemoryLimits(NvmlLibrary(Path("/")), cgroups=root)
    out = []
    for step, *rest in steps:
        try:
            if step == "find":
                out.append([[c.backend, c.reason] for c in await limits.find_backends()])
            elif step == "read":
                read = await limits.read_limit(uuid, root / rest[0])
                out.append([read.soft_bytes, read.hard_bytes, read.used_bytes])
            else:
                await limits.set_limit(
                    uuid, root / rest[0], hard_bytes=rest[1], soft_bytes=rest[2]
                )
                out.append("set")
        except Exception as error:
            out.append(f"{type(error).__name__}: {error}")
    print(json.dumps(out))

asyncio.run(main())
"""


class Host:
    """A host with an A100 and a T4, and groups that are plain folders."""

    def __init__(self, root: Path, driver: str) -> None:
        self.cgroups = root / "cgroup"
        (self.cgroups / "pod/container").mkdir(parents=True)
        (self.cgroups / "cgroup.controllers").touch()
        write_cards(root, [A100, T4])
        ini = root / "cards.ini"
        lines = ini.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("driver_version")]
        ini.write_text("\n".join([f"driver_version = {driver}", *kept, ""]))
        for card in (A100, T4):
            (root / f"nvidia{card.minor}").touch()
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(BUILD / "sim"),
            "VGPU_SIM_DIR": str(root),
            "VGPU_SIM_DEV": str(root),
        }

    def run(self, *steps: list[Any]) -> list[Any]:
        """What the node's process would hear."""
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", PROGRAM, self.cgroups, A100.uuid, json.dumps(steps)],
            cwd=REPOSITORY,
            env={**self.environment, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        out: list[Any] = json.loads(done.stdout)
        return out

    def take(self, group: str, *mib: int) -> list[str]:
        """What a program of a group hears of allocations, one after the other."""
        done = subprocess.run(  # noqa: S603 - built here
            [BUILD / "probe/cuprobe", "alloc", *map(str, mib)],
            env={**self.environment, "VGPU_SIM_CGROUP": str(self.cgroups / group)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout.splitlines() + done.stderr.splitlines()


@ROOT_ONLY
def test_a_limit_holds_for_its_group_and_for_no_other(tmp_path: Path) -> None:
    host = Host(tmp_path, "615.10.01")

    assert host.run(
        ["find"],
        ["read", "pod/container"],
        ["set", "pod/container", 3000 << 20, 0],
        ["read", "pod/container"],
        ["read", "pod"],
    ) == [
        [["misc", ""], ["misc", ""]],
        [0, None, 0],
        "set",
        [0, 3000 << 20, 0],
        [0, None, 0],
    ]
    within = host.take("pod/container", 2000, 1500)
    outside = host.take("pod", 2000, 1500)
    assert within != outside
    assert any("OUT_OF_MEMORY" in line or "out of memory" in line for line in within), within
    assert not any("OUT_OF_MEMORY" in line or "out of memory" in line for line in outside), outside
    host.run(["set", "pod/container", None, 0])
    assert host.take("pod/container", 2000, 1500) == outside


@ROOT_ONLY
def test_a_group_that_is_gone_has_no_limit_and_takes_none(tmp_path: Path) -> None:
    host = Host(tmp_path, "615.10.01")

    host.run(["set", "pod/container", 1 << 30, 0])
    (host.cgroups / "pod/container").rmdir()
    (said,) = host.run(["set", "pod/container", 1 << 30, 0])
    (host.cgroups / "pod/container").mkdir()

    assert said.startswith("RetryError: control group ")
    assert said.endswith("is gone")
    assert host.run(["read", "pod/container"]) == [[0, None, 0]]


def test_a_driver_from_before_holds_none(tmp_path: Path) -> None:
    host = Host(tmp_path, "580.95.05")

    found, said = host.run(["find"], ["set", "pod/container", 1 << 30, 0])

    assert found == [[None, "driver 580.95.05 is older than 615"]] * 2
    assert said.startswith("NoLimitsError: the driver holds no memory limits on card")
