"""Memory limits that the driver holds under libvgpu's: how high, and what there is to say of them.

The driver counts all that a control group has of a card, its own part for each process included,
and libvgpu counts that part only when the node has seen it. So the driver's limit lies above
libvgpu's by what processes may have besides, and a program that goes through libvgpu never meets
it (docs/decisions/0027-driver-backends.md).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hami_dra.contract.quantity import MIB
from hami_dra.policy.audit import HeldClaim, ProcessUse, is_limited


@dataclass(frozen=True, slots=True)
class DriverHold:
    """What a claim's status says of the driver's limit on one card.

    Attributes:
        reason: Of the condition.
        message: Of the condition. The same for as long as nothing changes.
        holds: Whether the driver holds every container of the claim's pods.
    """

    reason: str
    message: str
    holds: bool = False


def plan_ceilings(
    held: Iterable[HeldClaim], uses: Collection[ProcessUse], *, context_mib: int
) -> dict[tuple[str, str], int]:
    """Return bytes that each container of a pod may have of a card, by card and pod UID.

    Which of a pod's containers uses which of its shares is libvgpu's to say, so each may have what
    all of them may. A pod with something on the card that is not limited is not limited.

    Args:
        held: What is prepared here.
        uses: Processes on the cards.
        context_mib: What each process may have besides. One more than there are: the next one's
            context comes before anybody has seen it.
    """
    granted_mib: dict[tuple[str, str], int] = {}
    free: set[tuple[str, str]] = set()
    for claim in held:
        for device in claim.binding.devices:
            for pod in claim.pods:
                key = device.card, pod.uid
                granted_mib[key] = granted_mib.get(key, 0) + device.memory_mib
                if not is_limited(device):
                    free.add(key)
    processes: dict[tuple[str, str | None], int] = {}
    for use in uses:
        key_of_use = use.uuid, use.pod_uid
        processes[key_of_use] = processes.get(key_of_use, 0) + 1
    return {
        key: (mib + context_mib * (1 + processes.get(key, 0))) * MIB
        for key, mib in granted_mib.items()
        if key not in free
    }
