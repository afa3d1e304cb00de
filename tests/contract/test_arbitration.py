"""What the node publishes is what libvgpu obeys: real library, simulated driver, no cluster."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hami_dra.testing.simgpu import A100, create_driver_root
from tests.contract.arbitrated import CONTEXT_MIB

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
MARGIN_POINTS = 4.0


def play(tmp_path: Path, name: str) -> dict[str, Any]:
    card = replace(A100, context_overhead_mib=CONTEXT_MIB)
    driver = create_driver_root(tmp_path / "driver", (card,), BUILD)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "tests.contract.arbitrated", str(tmp_path), str(BUILD), name],
        cwd=REPOSITORY,
        env={**os.environ, **driver.environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_contexts_count_against_the_share(tmp_path: Path) -> None:
    seen = play(tmp_path, "memory")

    assert seen["overhead_mib"] == CONTEXT_MIB
    assert seen["host_pids"] == [True]
    # 1000 less 600 held and a context of 50; the rest of the page has its own context unseen.
    assert "allocated 350 MiB: ok" in seen["fits"]
    assert "allocating 1 MiB: CUDA_ERROR_OUT_OF_MEMORY" in seen["fits"]


def test_compute_is_limited_beside_a_neighbour_and_not_alone(tmp_path: Path) -> None:
    seen = play(tmp_path, "compute")
    first, second = (
        [json.loads(line) for line in seen[name].splitlines()] for name in ("first", "beside")
    )

    def percent(seconds: list[dict[str, int]], begin: int, end: int) -> float:
        inside = [s for s in seconds if s["from_ms"] >= begin and s["until_ms"] <= end]
        elapsed = sum(s["until_ms"] - s["from_ms"] for s in inside)
        return 100 * sum(s["busy_ms"] for s in inside) / elapsed

    met, left, end = second[0]["from_ms"] + 3000, second[-1]["until_ms"], first[-1]["until_ms"]
    assert abs(percent(first, met, left) - 30) <= MARGIN_POINTS
    assert abs(percent(second, met, left) - 60) <= MARGIN_POINTS
    assert percent(first, left + 5500, end) > 80
    by_work = sum(s["busy_ms"] for s in first) / 1000
    assert abs(seen["driver_seconds"]["a"] - by_work) <= 0.2 * by_work
