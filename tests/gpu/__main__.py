"""Measure on a card: ``python -m tests.gpu test|bench [--other LIBRARY] [--simulated]``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.gpu import bed, cases, memory
from tests.gpu.compute import ComputeBench, Pace
from tests.gpu.setups import REPOSITORY, list_setups
from tests.gpu.table import Row, render, write_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SECTIONS: Final = {"test": "gpu-test", "bench": "gpu-bench"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write. 1 where `test` finds that something is not held."""
    parser = argparse.ArgumentParser(prog="tests.gpu", description=__doc__)
    parser.add_argument("part", choices=_SECTIONS, help="memory (test) or compute (bench)")
    parser.add_argument(
        "--build", type=Path, default=REPOSITORY / "build/libvgpu", help="where libvgpu was built"
    )
    parser.add_argument(
        "--other",
        type=Path,
        default=os.environ.get("LIBVGPU_OTHER") or None,
        help="another library to measure in the same run (or LIBVGPU_OTHER)",
    )
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / "docs/measurements.md", help="takes the rows"
    )
    parser.add_argument("--simulated", action="store_true", help="show that this works; no page")
    parser.add_argument("--quick", action="store_true", help="a few cases, short windows")
    options = parser.parse_args(arguments)
    build, other = options.build.resolve(), options.other and options.other.resolve()
    if other and not other.exists():
        parser.error(f"{other} is not there")
    began = time.monotonic()
    with bed.simulate(build) if options.simulated else nullcontext(dict[str, str]()) as extra:
        setups = list_setups(build, other, extra)
        with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
            machine = bed.look(setups[0], Path(text))
        for sentence in machine.missing:
            print(f"missing: {sentence}", file=sys.stderr)
        if options.part == "test":
            ask = memory.ask_used(setups[0], machine)
            rows = _collect(row for one in setups[1:] for row in memory.measure(one, machine, ask))
        else:
            rows = _bench(ComputeBench(setups, machine, _pace(options.quick)), options.quick)
    note = machine.note()
    print(f"\n{render(rows, note=note)}\n\ntook {time.monotonic() - began:.0f} s")
    section = _SECTIONS[options.part]
    if not options.simulated and not write_section(options.page, section, rows, note=note):
        print(f"{options.page} keeps the figures that it has")
    return int(options.part == "test" and any(row.held is False for row in rows))


def _bench(bench: ComputeBench, quick: bool) -> list[Row]:  # noqa: FBT001 - of a command line
    alone, tenants = list(cases.list_compute()), list(cases.list_tenants())
    if quick:
        alone, tenants = cases.thin(alone), tenants[:1]
    return _collect(bench.measure_alone(alone)) + _collect(bench.measure_tenants(tenants))


def _pace(quick: bool) -> Pace:  # noqa: FBT001 - of a command line
    return Pace(windows=2, window_seconds=0.2) if quick else Pace()


def _collect(rows: Iterable[Row]) -> list[Row]:
    """Print each row as it comes, as measuring takes long."""
    collected = []
    for row in rows:
        print("  ".join(cell for cell in row.cells() if cell), flush=True)
        collected.append(row)
    return collected


if __name__ == "__main__":
    sys.exit(main())
