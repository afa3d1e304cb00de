"""The real node process as its next version might be, for tests of updates and downgrades.

``python -m hami_dra.testing.nextversion -- --node-name n1 ...``: everything after ``--`` goes to
``hami-dra node``. It says another version, brings the ledger one minor version further, and
publishes one more attribute of each card. With ``--broken`` it fails as soon as it has done so to
the ledger, as a bad release would.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from unittest.mock import patch

import click

from hami_dra.cli.node import node
from hami_dra.contract.errors import FatalError
from hami_dra.node import ledger, offer
from hami_dra.node.ledger import Ledger
from hami_dra.node.ledgerfile import STEPS
from hami_dra.node.recovery import Recovery, RecoveryReport
from hami_dra.policy.devices import describe_offers

ATTRIBUTE: Final = "nextVersion"
_STEP: Final = "ALTER TABLE claims ADD COLUMN next TEXT NOT NULL DEFAULT 'next';"


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--broken", is_flag=True, help="Fail at the start.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def next_version(arguments: tuple[str, ...], *, broken: bool) -> None:
    """Run the next version of ``hami-dra node``."""

    async def fail(_: Recovery) -> RecoveryReport:
        raise FatalError("this version is broken")

    def describe_more(*positional: Any, **named: Any) -> Sequence[dict[str, Any]]:
        devices = describe_offers(*positional, **named)
        return [
            {**device, "attributes": {**device["attributes"], ATTRIBUTE: {"bool": True}}}
            for device in devices
        ]

    with (
        patch.object(Ledger, "open", partial(Ledger.open, steps=(*STEPS, _STEP))),
        patch.object(ledger, "__version__", "next"),
        patch.object(offer, "describe_offers", describe_more),
        patch.object(Recovery, "start", fail if broken else Recovery.start),
    ):
        node.main(args=list(arguments), prog_name="hami-dra node")


if __name__ == "__main__":
    next_version()
