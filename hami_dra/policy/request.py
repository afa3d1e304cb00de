"""What a pod asks for, in one form for every dialect."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

from hami_dra.contract.claimconfig import CorePolicy
from hami_dra.policy.target import OUR_CARDS, Target

MOST_CARDS: Final = 32
"""Results in one claim's allocation (resource.k8s.io/v1 validation)."""
WHOLE_CORES_PERCENT: Final = 100
_USUAL_PRIORITY: Final = 1
"""HAMi-core's, where nothing is said."""
NodePolicy = Literal["", "binpack", "spread"]


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How the limits of a share are held.

    Attributes:
        priority: 0 before 1 before 2, among the tasks of a card; ``None`` is 1.
        core_policy: When compute is throttled; ``None`` for the library's default.
        control: Whether the limits are held at all.
        oversubscription: Whether memory beyond the card's may be the host's.
    """

    priority: int | None = None
    core_policy: CorePolicy | None = None
    control: bool = True
    oversubscription: bool = False

    def covers(self, other: "Enforcement") -> bool:
        """Whether nothing is lost, and no limit, by taking this instead of the other."""
        return (
            self.control == other.control
            and self.oversubscription == other.oversubscription
            and self.core_policy == other.core_policy
            and _rank(self.priority) <= _rank(other.priority)
        )


@dataclass(frozen=True, slots=True)
class Share:
    """What one container wants of each of its cards.

    Attributes:
        container: Name of the container that it was written for.
        cards: Number of different cards.
        memory_mib: MiB enforced on each card; ``None`` for all that the card has.
        memory_percent: The same in percent of the card, over 0 and under 100, where it was
            written so. At most one of the two is set.
        cores_percent: Reserved share of the multiprocessors; 0 neither reserves nor throttles.
        exclusive: Nobody else may use the card: its whole memory is consumed, whatever
            ``memory_mib`` enforces.
        enforcement: How the limits are held.
        target: Whose cards they are.
        selectors: CEL expressions that each of them must satisfy, besides those of the pod.
    """

    container: str
    cards: int
    memory_mib: int | None = None
    memory_percent: int | Fraction | None = None
    cores_percent: int = 0
    exclusive: bool = False
    enforcement: Enforcement = Enforcement()
    target: Target = OUR_CARDS
    selectors: tuple[str, ...] = ()

    def covers(self, other: "Share") -> bool:
        """Whether a container that wants ``other`` loses nothing by using this share instead.

        The number of cards must be equal: a program counts what it sees. A share without
        a core limit is not covered by one that throttles.
        """
        enough_cores = other.cores_percent <= self.cores_percent and (
            other.cores_percent > 0 or self.cores_percent in {0, WHOLE_CORES_PERCENT}
        )
        return (
            self.cards == other.cards
            and (self.target, self.selectors) == (other.target, other.selectors)
            and self._has_memory_for(other)
            and enough_cores
            and (self.exclusive or not other.exclusive)
            and self.enforcement.covers(other.enforcement)
        )

    def _has_memory_for(self, other: "Share") -> bool:
        if self.memory_mib is not None:
            return other.memory_mib is not None and other.memory_mib <= self.memory_mib
        if self.memory_percent is not None:
            # MiB cannot be compared with percent of a card that is not chosen yet.
            return other.memory_percent is not None and other.memory_percent <= self.memory_percent
        return True


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the cards of a pod, and the pod, should be.

    Attributes:
        selectors: CEL expressions that every card of ours must satisfy.
        one_card: All shares of the pod must be on the same card.
        one_numa_node: All cards of a container must be on one NUMA node.
        one_pcie_root: All cards of a container must be below one PCIe root.
        near: Attribute in which the cards of a container should be equal if possible; "" for none.
        spread_cards: Prefer another card for every pod.
        nodes: Prefer nodes with many shares (``binpack``) or few (``spread``); "" for neither.
    """

    selectors: tuple[str, ...] = ()
    one_card: bool = False
    one_numa_node: bool = False
    one_pcie_root: bool = False
    near: str = ""
    spread_cards: bool = False
    nodes: NodePolicy = ""


@dataclass(frozen=True, slots=True)
class PodRequest:
    """Everything that a dialect read from one pod.

    Attributes:
        shares: One claim request each; those of containers that run together come first.
        uses: Container name to the container whose share it uses; only containers with a share.
        original: Container name to the keys that were read, as ``{"limits": .., "requests": ..,
            "annotations": ..}``, each only if something was read there.
        keys: Resource names that the claim replaces, to be removed wherever they stand.
        warnings: What was read differently from how it was written.
        placement: Where the cards should be.
    """

    shares: tuple[Share, ...]
    uses: dict[str, str]
    original: dict[str, dict[str, dict[str, Any]]]
    keys: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    placement: Placement = Placement()


def place_shares(
    beside: list[Share], before: list[Share]
) -> tuple[tuple[Share, ...], dict[str, str]]:
    """Let init containers use the share of a container that starts after them.

    An init container has ended when the others start, so a share that covers it costs the card
    nothing; the limit that it then feels is that of the share. Without one it gets its own. The
    smallest share that covers it is taken. Sidecars belong to ``beside``.

    Returns:
        All shares that a claim must hold, and who uses which.
    """
    shares = list(beside)
    uses = {share.container: share.container for share in beside}
    for share in before:
        covering = [other for other in beside if other.covers(share)]
        if covering:
            uses[share.container] = min(covering, key=_size).container
        else:
            shares.append(share)
            uses[share.container] = share.container
    return tuple(shares), uses


def _rank(priority: int | None) -> int:
    return _USUAL_PRIORITY if priority is None else priority


def _size(share: Share) -> tuple[bool, float, int]:
    memory = float(share.memory_mib or share.memory_percent or "inf")
    return share.exclusive, memory, share.cores_percent
