"""The programs for a real card do their work, as far as the simulated driver can show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.bed import look, simulate
from tests.gpu.cases import ComputeCase, TenantsCase
from tests.gpu.compute import ComputeBench, Pace
from tests.gpu.setups import list_setups

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu")).resolve()
LIBRARY = BUILD / "src/libvgpu-test.so"


def test_memory_is_measured_under_two_libraries() -> None:
    # Ours once more, by the variables that another library is told its limits with.
    done = subprocess.run(  # noqa: S603 - our own program
        [
            sys.executable,
            "-m",
            "tests.gpu",
            "test",
            "--simulated",
            "--build",
            BUILD,
            "--other",
            LIBRARY,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    for library in ("ours", "other"):
        for what in (
            "cuMemAlloc until",
            "cuMemAllocAsync",
            "cuMemCreate",
            "eight processes",
            "cuMemAlloc with",
        ):
            (row,) = (
                line for line in done.stdout.splitlines() if line.startswith(f"| {library}: {what}")
            )
            assert "| 2048 |" in row, row
            assert row.endswith("| held |"), row


def test_compute_is_measured_alone_and_beside_a_neighbour(tmp_path: Path) -> None:
    with simulate(BUILD) as extra:
        setups = list_setups(BUILD, None, extra)
        machine = look(setups[0], tmp_path)
        bench = ComputeBench(setups, machine, Pace(windows=2, window_seconds=0.3))
        rows = [
            *bench.measure_alone(ComputeCase(mode, 30, 500) for mode in ("loop", "sync", "graph")),
            *bench.measure_alone([ComputeCase("matmul", 30)]),
            *bench.measure_tenants([TenantsCase("loop", (30, 60), (500, 500))]),
        ]

    assert machine.card is not None
    for row in rows[:3]:
        share = float(row.figure.split(" %", maxsplit=1)[0])
        assert share == pytest.approx(30, abs=12), row
    assert machine.torch or rows[3].figure == "not measured"
    assert float(rows[4].figure.split(" :", maxsplit=1)[0]) == pytest.approx(33.3, abs=8), rows[4]


def test_a_driver_without_a_card_is_told(tmp_path: Path) -> None:
    with simulate(BUILD) as extra:
        (Path(extra["VGPU_SIM_DIR"]) / "cards.ini").write_text("driver_version = 580.95.05\n")
        machine = look(list_setups(BUILD, None, extra)[0], tmp_path)

    assert machine.card is None
    assert "finds no card" in machine.missing[0]
