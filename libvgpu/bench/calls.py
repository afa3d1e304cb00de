# SPDX-License-Identifier: Apache-2.0
"""What libvgpu adds to single calls and to the start of a process, on simulated cards.

Usage: calls.py BUILD_DIRECTORY [--rounds N] [--instructions]. Each round measures without and
with libvgpu, one directly after the other, and the difference of the two is one value: what else
the machine does meets both. Printed are medians, with the least and the most. Instructions are
counted by callgrind (valgrind), which nothing disturbs. Standard library only.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

BATCH, BATCHES = 200, 500
STARTS = 300
COUNTED = 2000
"""Calls whose instructions are counted, after as many that are not."""
TARGETS_NS = {"alloc-free": 300.0, "mem-info": 200.0, "launch": 30.0, "foreign-dlsym": 15.0}
START_TARGET_MS = 5.0


def run(program: Path, arguments: list[str], library: Path | None) -> float:
    """Return what the program prints."""
    environment = {**os.environ, **({"LD_PRELOAD": str(library)} if library else {})}
    done = subprocess.run(
        [program, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def count(program: Path, call: str, calls: int, library: Path | None) -> int:
    """Return the instructions of a whole process that makes so many calls."""
    environment = {**os.environ, **({"LD_PRELOAD": str(library)} if library else {})}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "counts"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q"]
        subprocess.run(
            [*command, program, call, str(calls), "1"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        totals = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    if totals is None:
        sys.exit("callgrind wrote no summary")
    return int(totals[1])


def count_each(program: Path, call: str, library: Path | None) -> float:
    """Return the instructions of one call: a process makes it twice as often as another."""
    few = count(program, call, COUNTED, library)
    # A process makes each batch twice, the first time to warm up.
    return (count(program, call, 2 * COUNTED, library) - few) / (2 * COUNTED)


def spread(values: list[float], digits: int = 0) -> str:
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def judge(added: list[float], target: float) -> str:
    return "held" if median(added) <= target else "not held"


def measure_calls(program: Path, library: Path, rounds: int) -> None:
    for call, target in TARGETS_NS.items():
        arguments = [call, str(BATCH), str(BATCHES)]
        pairs = [
            (run(program, arguments, None), run(program, arguments, library)) for _ in range(rounds)
        ]
        added = [(ours - native) / BATCH for native, ours in pairs]
        native, ours = (spread([pair[side] / BATCH for pair in pairs]) for side in (0, 1))
        print(
            f"{call}, ns: native {native}, with libvgpu {ours}, added {spread(added)}; "
            f"target <= {target:.0f}: {judge(added, target)}"
        )


def measure_starts(program: Path, library: Path, rounds: int) -> None:
    for processes in (1, STARTS):
        arguments = ["starts", str(processes)]
        pairs = [
            (run(program, arguments, None), run(program, [*arguments, str(library)], None))
            for _ in range(rounds)
        ]
        added = [(ours - native) / processes / 1e6 for native, ours in pairs]
        native, ours = (
            spread([pair[side] / processes / 1e6 for pair in pairs], 2) for side in (0, 1)
        )
        print(
            f"start of {processes} at once, ms each: native {native}, with libvgpu {ours}, "
            f"added {spread(added, 2)}; target <= {START_TARGET_MS:.0f}: "
            f"{judge(added, START_TARGET_MS)}"
        )


def count_calls(program: Path, library: Path) -> None:
    for call in TARGETS_NS:
        native = count_each(program, call, None)
        ours = count_each(program, call, library)
        print(
            f"{call}, instructions: native {native:.0f}, with libvgpu {ours:.0f}, "
            f"added {ours - native:.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--starts", action="store_true", help="nothing but starts of processes")
    options = parser.parse_args()
    program = (options.build / "bench" / "bench-calls").resolve()
    library = (options.build / "src" / "libvgpu-test.so").resolve()
    if not options.starts:
        measure_calls(program, library, options.rounds)
    measure_starts(program, library, options.rounds)
    if options.instructions:
        count_calls(program, library)


if __name__ == "__main__":
    main()
