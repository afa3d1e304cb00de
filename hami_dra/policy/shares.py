"""Which processes on the cards are whose: from a driver's list of them to grants and slots.

Three things are known of a process from outside that it cannot choose: its pod, its container, and
its number and time of start. Which of its pod's grants it uses, the slots of their regions tell;
the tenant writes those, and can only shift bytes between grants of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hami_dra.contract.claimconfig import CorePolicy
from hami_dra.contract.quantity import MIB
from hami_dra.contract.region import RegionProcess, RegionView
from hami_dra.policy.audit import HeldClaim

WHOLE_PERMILLE: Final = 1000
DEFAULT_PRIORITY: Final = 1
"""HAMi's, for tasks that say none."""
_WHOLE_PERCENT: Final = 100


@dataclass(frozen=True, order=True, slots=True)
class GrantName:
    """One grant, and its region; they sort as libvgpu takes them."""

    claim_uid: str
    request: str


@dataclass(frozen=True, order=True, slots=True)
class ShareName:
    """One card of a grant: device `index` of its grant and of its region."""

    grant: GrantName
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One card of a grant, as it holds now.

    Attributes:
        name: Which.
        uuid: The card.
        namespace: Of the claim.
        claim: Name of the claim.
        pods: UIDs of the pods that the claim is reserved for.
        memory_bytes: What may be used; 0 = not limited.
        cores_percent: The same of compute; 0 = not limited.
        ceiling_percent: What compute is raised to while nobody else works on the card; 0 = all.
        core_policy: When compute is limited.
        priority: 0 first.
        control_disabled: Nothing is limited.
    """

    name: ShareName
    uuid: str
    namespace: str
    claim: str
    pods: frozenset[str]
    memory_bytes: int
    cores_percent: int
    ceiling_percent: int = 0
    core_policy: CorePolicy = "default"
    priority: int = DEFAULT_PRIORITY
    control_disabled: bool = False

    @property
    def permille(self) -> int:
        """The limit of compute in thousandths while others work on the card; 1000 = none."""
        percent = self.cores_percent
        if self.control_disabled or self.core_policy == "disable" or not percent:
            return WHOLE_PERMILLE
        return min(percent, _WHOLE_PERCENT) * 10

    @property
    def is_paced(self) -> bool:
        """Whether libvgpu holds its launches back at all."""
        return self.permille < WHOLE_PERMILLE

    @property
    def permille_alone(self) -> int:
        """The limit while nobody else works on the card."""
        if self.core_policy == "force" and not self.ceiling_percent:
            return self.permille
        return max(self.permille, min(self.ceiling_percent or _WHOLE_PERCENT, _WHOLE_PERCENT) * 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardUse:
    """What one process has and does on one card, as seen from outside.

    Attributes:
        uuid: The card.
        pid: In the node's PID namespace.
        inner_pid: In its own; 0 if not known.
        start_ticks: When it began; 0 if not known.
        pid_namespace: Inode of its PID namespace; 0 if not known.
        used_bytes: What it has, the driver's own part included.
        busy_permille: Of the card's time since the reading before; ``None``: not known.
        pod_uid: Of the pod that it runs in; ``None``: in none.
        container_id: "" if it runs in none.
    """

    uuid: str
    pid: int
    used_bytes: int
    busy_permille: int | None = None
    inner_pid: int = 0
    start_ticks: int = 0
    pid_namespace: int = 0
    pod_uid: str | None = None
    container_id: str = ""


@dataclass(frozen=True, slots=True)
class OwnedUse:
    """A process's use of a card, and whose it is.

    Attributes:
        use: Of the process.
        shares: Those that it uses, in libvgpu's order; empty if that cannot be told.
        slots: Its slots in their regions.
    """

    use: CardUse
    shares: tuple[Share, ...]
    slots: Mapping[GrantName, RegionProcess]

    @property
    def charged_bytes(self) -> int:
        """What libvgpu has charged for it."""
        return sum(self._read_charge(share) for share in self.shares)

    def split_bytes(self) -> dict[ShareName, int]:
        """Return what it has by share: what each was charged, and the first one the rest."""
        parts, rest = {}, self.use.used_bytes
        for share in self.shares[1:]:
            parts[share.name] = min(self._read_charge(share), rest)
            rest -= parts[share.name]
        return parts | {share.name: rest for share in self.shares[:1]}

    def _read_charge(self, share: Share) -> int:
        slot = self.slots.get(share.name.grant)
        index = share.name.index
        return 0 if slot is None or index >= len(slot.used_bytes) else slot.used_bytes[index]


def list_shares(held: Iterable[HeldClaim]) -> list[Share]:
    """Return the shares of claims that are prepared here, in order."""
    found = []
    for claim in held:
        binding = claim.binding
        for request, devices in binding.requests.items():
            grant = GrantName(binding.claim_uid, request)
            controlled = [device for device in devices if device.controlled]
            found += [
                Share(
                    name=ShareName(grant, index),
                    uuid=device.uuid,
                    namespace=binding.namespace,
                    claim=binding.name,
                    pods=frozenset(pod.uid for pod in claim.pods),
                    memory_bytes=device.memory_mib * MIB,
                    cores_percent=device.cores_percent,
                    ceiling_percent=device.ceiling_percent,
                    core_policy=device.core_policy or "default",
                    priority=DEFAULT_PRIORITY if device.priority is None else device.priority,
                    control_disabled=device.control_disabled,
                )
                for index, device in enumerate(controlled)
            ]
    return sorted(found, key=lambda share: share.name)


class ProcessOwners:
    """Finds out whose processes are, and remembers what containers have been seen to use."""

    def __init__(self) -> None:
        self._containers: dict[tuple[str, str], frozenset[ShareName]] = {}

    def find(
        self,
        shares: Sequence[Share],
        uses: Iterable[CardUse],
        regions: Mapping[GrantName, RegionView],
    ) -> list[OwnedUse]:
        """Tell whose each process is.

        A process of a pod with one share of the card is that share's. Of several, it is theirs
        in whose regions it has a slot; before it has one, those that its container was seen to
        use. Else it is nobody's: a guess would take memory from the wrong container.

        Args:
            shares: All on this node, in order.
            uses: What the driver lists.
            regions: What grants' regions say.
        """
        slots = {name: _index_slots(view) for name, view in regions.items()}
        by_pod: dict[tuple[str, str | None], list[Share]] = {}
        for share in shares:
            for pod in share.pods:
                by_pod.setdefault((share.uuid, pod), []).append(share)
        known = {share.name for share in shares}
        self._containers = {
            key: kept for key, names in self._containers.items() if (kept := names & known)
        }
        listed = list(uses)
        found: dict[int, OwnedUse] = {}
        # Largest first, as the slots: see `_take_slot`.
        for number, use in sorted(enumerate(listed), key=lambda item: -item[1].used_bytes):
            candidates = by_pod.get((use.uuid, use.pod_uid), [])
            found[number] = self._find_one(candidates, use, slots)
        return [found[number] for number in range(len(listed))]

    def _find_one(
        self, candidates: Sequence[Share], use: CardUse, slots: "dict[GrantName, _Slots]"
    ) -> OwnedUse:
        mine = {
            grant: slot
            for grant in dict.fromkeys(share.name.grant for share in candidates)
            if (slot := _take_slot(slots.get(grant, {}), use)) is not None
        }
        place = (use.container_id, use.uuid)
        chosen = tuple(share for share in candidates if share.name.grant in mine)
        if chosen and use.container_id:
            seen = frozenset(share.name for share in chosen)
            self._containers[place] = self._containers.get(place, frozenset()) | seen
        elif not chosen and len(candidates) == 1:
            chosen = tuple(candidates)
        elif not chosen and use.container_id:
            names = self._containers.get(place, frozenset())
            chosen = tuple(share for share in candidates if share.name in names)
        return OwnedUse(use, chosen, mine)


_Slots = dict[int, list[RegionProcess]]


def _index_slots(view: RegionView) -> _Slots:
    slots: _Slots = {}
    for process in sorted(view.processes, key=lambda process: -sum(process.used_bytes)):
        slots.setdefault(process.pid, []).append(process)
    return slots


def _take_slot(slots: _Slots, use: CardUse) -> RegionProcess | None:
    """Return a process's slot.

    The first processes of two pods that share a claim have the same number, and perhaps the same
    start. Where their namespaces cannot be told, the larger one gets the larger slot: then what
    they have beside their charges is right together, whichever is whose.
    """
    for slot in slots.get(use.inner_pid, []) if use.inner_pid else []:
        same = slot.start_time == use.start_ticks
        if same and use.pid_namespace in {0, slot.pid_namespace}:
            slots[use.inner_pid].remove(slot)
            return slot
    return None
