"""The real node process, killed in the middle of its work.

``python -m hami_dra.testing.crash --at cdi -- --node-name n1 ...``: everything after ``--`` goes to
``hami-dra node``. The process kills itself with SIGKILL, so nothing is cleaned up: what a power
cut or the OOM killer leaves behind. Either right after a step of the preparer, or right before a
point (see `crashpoints`) that is counted from the first call to the API server for a claim; all
of them, or those of one kind.
"""

import itertools
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from hami_dra.cli.node import node
from hami_dra.node.partitions import MIG_PREPARE_STEPS, MIG_UNPREPARE_STEPS
from hami_dra.node.preparer import CHANGE_STEPS, PREPARE_STEPS, UNPREPARE_STEPS
from hami_dra.testing.crashpoints import Point, watch_points

_STEPS: Final = (
    *PREPARE_STEPS,
    *MIG_PREPARE_STEPS,
    *UNPREPARE_STEPS,
    *MIG_UNPREPARE_STEPS,
    *CHANGE_STEPS,
)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--at", type=click.Choice(_STEPS), help="After a step.")
@click.option(
    "--before", type=click.IntRange(min=0), help="Before a point, 0 being the first claim's GET."
)
@click.option(
    "--below",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Where files count as points. Repeatable.",
)
@click.option("--only", default="", metavar="VERB", help="Count points of this kind.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def crash(
    at: str | None,
    before: int | None,
    below: tuple[Path, ...],
    only: str,
    arguments: tuple[str, ...],
) -> None:
    """Run ``hami-dra node`` and die."""

    def step(name: str) -> None:
        if name == at:
            _die()

    with ExitStack() as stack:
        if before is not None:
            stack.enter_context(watch_points(_Countdown(before, only), *below))
        node.main(args=list(arguments), obj=step, prog_name="hami-dra node")


class _Countdown:
    """Kills the process before the given point."""

    def __init__(self, before: int, only: str) -> None:
        self._before = before
        self._only = only
        self._count = itertools.count()
        self._counting = False

    def __call__(self, point: Point) -> None:
        if point == Point("api", "get resourceclaims"):
            self._counting = True
        if self._only not in {"", point.verb}:
            return
        if self._counting and next(self._count) >= self._before:
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    crash()
