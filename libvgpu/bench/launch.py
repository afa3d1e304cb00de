# SPDX-License-Identifier: Apache-2.0
"""Print what libvgpu adds to a launch: launch.py BUILD_DIRECTORY. On the simulated driver.

Kernels take no time, so nothing is ever owed and no launch waits: what remains is the hook. The
setups run in turn, so that what else the machine does falls on all of them. Never fails because of
a figure: machines differ.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hami_dra.contract.grant import Grant, GrantDevice, encode_grant

UUID = "GPU-a1000000-5157-4a2b-9c3d-0123456789ab"
ROUNDS = 11
SETUPS = {"native": None, "no compute limit": 0, "a limit of 50 %": 50}


def prepare(root: Path) -> None:
    """Write a simulated card and a grant for each setup."""
    (root / "sim").mkdir()
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    card = f"[card]\nuuid = {UUID}\nname = card\nmemory_mib = 40960\npci = 0000:3b:00.0\n"
    (root / "sim/cards.ini").write_text(card)
    for cores in SETUPS.values():
        if cores is not None:
            grant = Grant(
                "uid", "gpu", (GrantDevice(UUID, 3000 << 20, cores, core_policy="force"),)
            )
            (root / f"{cores}/uid_gpu/region").mkdir(parents=True)
            (root / f"{cores}/uid_gpu/grant").write_bytes(encode_grant(grant))


def run(build: Path, root: Path, cores: int | None) -> tuple[float, float, float]:
    """Return median, p99 and mean of one run, in nanoseconds."""
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(build / "sim"),
        "VGPU_SIM_DIR": str(root / "sim"),
        "VGPU_SIM_DEV": str(root / "dev"),
    }
    if cores is not None:
        environment["LD_PRELOAD"] = str(build / "src/libvgpu-test.so")
        environment["VGPU_GRANT_ROOT"] = str(root / str(cores))
    output = subprocess.run(
        [build / "bench/launch-bench"], check=True, capture_output=True, text=True, env=environment
    ).stdout
    median, p99, mean = map(float, output.split())
    return median, p99, mean


def spread(values: list[float]) -> str:
    """Return the median of the runs, with the least and the most."""
    return f"{statistics.median(values):6.0f} ({min(values):.0f} to {max(values):.0f})"


def main() -> None:
    """Print one line for each setup, and what it adds to the native one."""
    build = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        prepare(root)
        results = {name: [] for name in SETUPS}  # type: dict[str, list[tuple[float, float, float]]]
        for _round in range(ROUNDS):
            for name, cores in SETUPS.items():
                results[name].append(run(build, root, cores))
    native = statistics.median(mean for _median, _p99, mean in results["native"])
    print(f"ns per launch, {ROUNDS} runs of 200000: median (least to most)")
    for name, rows in results.items():
        medians, p99s, means = (list(column) for column in zip(*rows, strict=True))
        added = statistics.median(means) - native
        print(
            f"{name:18} median {spread(medians)}  p99 {spread(p99s)}  "
            f"mean {spread(means)}  added {added:.0f}"
        )


if __name__ == "__main__":
    main()
