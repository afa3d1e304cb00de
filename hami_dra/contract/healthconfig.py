"""What an operator may set about the health of cards: ``health`` of the node's configuration.

The default classes of XIDs follow NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors, "Xid
catalog", immediate actions): ignored is what it answers with a restart of the application or
with nothing, fatal what it answers with a reset of the card or the machine.
"""

from typing import Final, Literal

import msgspec

from hami_dra.contract.errors import UserError

Effect = Literal["NoSchedule", "NoExecute"]
XidClass = Literal["ignored", "suspect", "fatal"]

IGNORED_XIDS: Final = (8, 11, 13, 31, 32, 37, 43, 45, 63, 68, 69, 92, 93, 94, 109, 137, 154)
"""Faults of an application, notes without a consequence, and 154, which announces an action that
is polled (`CardVitals.recovery_action`)."""
FATAL_XIDS: Final = (46, 48, 62, 64, 79, 95, 110, 119, 120, 140, 143, 158)
"""The card works again only after a reset."""

_MOST_XID: Final = 2**31 - 1
_MOST_SECONDS: Final = 30 * 24 * 3600.0
_MOST_LOOKS: Final = 100


class XidTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which XIDs mean what. A number in a list leaves the list of the defaults that it is in.

    Attributes:
        ignored: The application's fault; counted and logged, no more.
        suspect: New claims are kept away until the card has been quiet for a while.
        fatal: The card is marked until it was reset.
        others: What a number means that is in no list.
    """

    ignored: tuple[int, ...] = ()
    suspect: tuple[int, ...] = ()
    fatal: tuple[int, ...] = ()
    others: XidClass = "suspect"


class HealthConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """When cards are marked.

    Attributes:
        xids: Classes of XIDs.
        suspect_effect: Of the taint on a card that is suspected.
        fatal_effect: Of the taint on a card that needs a reset.
        lost_effect: Of the taint on a card that the driver does not describe any more.
        quiet_seconds: How long a suspected card has to be quiet until its mark ends.
        bad_looks: Looks in a row that must be bad before a polled fault marks a card.
        good_looks: Looks in a row that must be good before the mark of a polled fault ends.
    """

    xids: XidTable = XidTable()
    suspect_effect: Effect = "NoSchedule"
    fatal_effect: Effect = "NoSchedule"
    lost_effect: Effect = "NoSchedule"
    quiet_seconds: float = 600.0
    bad_looks: int = 2
    good_looks: int = 3


def check_health(health: HealthConfig) -> None:
    """Refuse impossible values.

    Raises:
        UserError: Names the field.
    """
    table = health.xids
    seen: dict[int, str] = {}
    for name in ("ignored", "suspect", "fatal"):
        for number in getattr(table, name):
            field = f"health.xids.{name}"
            if not 0 < number <= _MOST_XID:
                raise UserError(f"{number} is not the number of an XID", field=field)
            if number in seen:
                raise UserError(f"{number} is in {seen[number]} as well", field=field)
            seen[number] = name
    for name, number, lowest, highest in (
        ("quietSeconds", health.quiet_seconds, 0.0, _MOST_SECONDS),
        ("badLooks", health.bad_looks, 1, _MOST_LOOKS),
        ("goodLooks", health.good_looks, 1, _MOST_LOOKS),
    ):
        if not lowest <= number <= highest:
            raise UserError(
                f"is {number:g}; write a number from {lowest:g} to {highest:g}",
                field=f"health.{name}",
            )
