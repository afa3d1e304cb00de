"""Shares that are to be MIG devices: a mode in an annotation says so, for a whole pod."""

from collections.abc import Sequence
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.policy.dialects.cardlists import locate
from hami_dra.policy.podview import PodView, list_places
from hami_dra.policy.request import Share
from hami_dra.policy.target import MIG_DEVICES

MIG_MODE: Final = "mig"


def take_part(
    pod: PodView, share: Share, conditions: Sequence[str], *, mode: str, memory: str
) -> Share:
    """Return a share as MIG devices, the smallest with the memory, whatever cores.

    Args:
        pod: Whose it is.
        share: As its container asks for it.
        conditions: On the devices.
        mode: The annotation that asks for parts.
        memory: The key that says how much memory.

    Raises:
        UserError: It does not say how much memory.
    """
    if share.memory_mib is None:
        place = next(p for p in list_places(pod) if p.container.name == share.container)
        raise UserError(
            f'asks for parts of cards ({locate(mode)} is "{MIG_MODE}") and says no MiB, so '
            f"nobody knows how large they must be; write {memory}",
            field=f"{place.path}.resources",
        )
    return Share(
        container=share.container,
        cards=share.cards,
        memory_mib=share.memory_mib,
        target=MIG_DEVICES,
        selectors=tuple(conditions),
    )
