"""The real node process, killed right after one step.

``python -m hami_dra.testing.crash --at cdi -- --node-name n1 ...``: everything after ``--`` goes to
``hami-dra node``. The process kills itself with SIGKILL, so nothing is cleaned up: what a power
cut or the OOM killer leaves behind.
"""

import os
import signal

import click

from hami_dra.cli.node import node
from hami_dra.node.preparer import PREPARE_STEPS, UNPREPARE_STEPS


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--at", required=True, type=click.Choice(PREPARE_STEPS + UNPREPARE_STEPS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def crash(at: str, arguments: tuple[str, ...]) -> None:
    """Run ``hami-dra node`` and die right after a step."""

    def step(name: str) -> None:
        if name == at:
            os.kill(os.getpid(), signal.SIGKILL)

    node.main(args=list(arguments), obj=step, prog_name="hami-dra node")


if __name__ == "__main__":
    crash()
