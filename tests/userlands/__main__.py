"""Run the table: ``python -m tests.userlands [--release NAME]... [--program WORD]``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.userlands.builds import REPOSITORY, build_programs
from tests.userlands.container import Outcome, run_program
from tests.userlands.injection import NOTHING, Injection, prepare_share
from tests.userlands.page import Cell, render_table, write_table
from tests.userlands.programs import COMPARED, HELD, Program
from tests.userlands.roots import OLDEST, RELEASES, Release, UserlandError, ensure_root

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUILD: Final = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
_SHOWN: Final = 1500


@dataclass(frozen=True, slots=True)
class Bed:
    """What every run needs.

    Attributes:
        programs: What was built for all userlands.
        injection: What the node puts into containers with a share.
    """

    programs: Path
    injection: Injection


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print a line for each run. 1 where something differs, 2 if it cannot."""
    parser = argparse.ArgumentParser(prog="tests.userlands", description=__doc__)
    names = [release.name for release in RELEASES]
    parser.add_argument("--release", action="append", choices=names, help="repeatable; else all")
    parser.add_argument("--program", default="", help="only those whose names have this in them")
    parser.add_argument("--build", type=Path, default=_BUILD, help="where libvgpu was built")
    parser.add_argument("--page", type=Path, help="takes the table")
    options = parser.parse_args(arguments)
    if os.geteuid():
        parser.error("debootstrap, mount and chroot need root")
    releases = [one for one in RELEASES if not options.release or one.name in options.release]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hami-dra-userlands-") as text:
        base = Path(text)
        base.chmod(0o755)
        try:
            bed = _make_bed(base, options.build.resolve())
            cells = [
                cell for release in releases for cell in _run_release(release, bed, options.program)
            ]
        except UserlandError as error:
            print(f"userlands: {error}", file=sys.stderr)
            return 2
    if options.page:
        write_table(options.page, cells)
    else:
        print(f"\n{render_table(cells)}")
    wrong = sum(not cell.good for cell in cells)
    print(f"\n{len(cells)} runs, {wrong} of them wrong, in {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


def _make_bed(base: Path, native: Path) -> Bed:
    programs = base / "programs"
    programs.mkdir()
    build_programs(ensure_root(OLDEST), native, programs)
    (base / "node").mkdir()
    return Bed(programs, prepare_share(base / "node", native, programs))


def _run_release(release: Release, bed: Bed, word: str) -> list[Cell]:
    root = ensure_root(release)
    glibc = _ask_glibc(root, bed)
    cells = []
    for program in (one for one in (*COMPARED, *HELD) if word in one.name):
        problems = _judge(root, bed, program)
        cells.append(Cell(program.name, f"{release.name} ({glibc})", program.seen, not problems))
        print(f"{release.name}: {program.name}: {'; '.join(problems) or program.seen}", flush=True)
    return cells


def _ask_glibc(root: Path, bed: Bed) -> str:
    said = run_program(root, bed.programs, NOTHING, ["getconf", "GNU_LIBC_VERSION"])
    return said.stdout.strip()


def _judge(root: Path, bed: Bed, program: Program) -> list[str]:
    """Return what is wrong about a program, with what was seen."""

    def run(injection: Injection) -> Outcome:
        return run_program(
            root,
            bed.programs,
            injection,
            program.command,
            environment=program.environment,
            user=program.user,
        )

    ours = run(bed.injection)
    if program.expected is not None:
        return _compare(Outcome(0, program.expected, "", (), ()), ours)
    native = run(NOTHING)
    problems = _compare(native, _without_warning(ours, program.warning))
    if native.status:
        problems.append(f"it fails by itself: {native.stderr[-_SHOWN:]}")
    if program.warning and program.warning not in ours.stderr:
        problems.append("the loader's warning is not there any more")
    return problems


def _without_warning(outcome: Outcome, warning: str) -> Outcome:
    if not warning:
        return outcome
    stderr = outcome.stderr.replace(warning, "")
    return Outcome(outcome.status, outcome.stdout, stderr, outcome.files, outcome.left)


def _compare(wanted: Outcome, seen: Outcome) -> list[str]:
    return [
        f"{name} is {str(getattr(seen, name))[-_SHOWN:]!r}, not"
        f" {str(getattr(wanted, name))[-_SHOWN:]!r}"
        for name in wanted.differences(seen)
    ]


if __name__ == "__main__":
    sys.exit(main())
