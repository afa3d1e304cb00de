"""Who uses more of a card than was granted, judged by what the driver says of each process.

What libvgpu counts is written by the tenant; what NVML counts is not. The two differ by what the
driver itself takes for each process (contexts, modules), which nobody granted or can refuse.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hami_dra.policy.binding import Binding, BoundDevice

_SEEN: Final = 2
"""One reading may fall between a limit that was lowered and the programs that follow it."""


@dataclass(frozen=True, order=True, slots=True)
class Pod:
    """A pod as a claim names it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class HeldClaim:
    """A claim that is prepared here.

    Attributes:
        binding: With the limits that hold now.
        pods: Those that it is reserved for.
        changed: Whether somebody asked for other limits than were granted.
    """

    binding: Binding
    pods: frozenset[Pod]
    changed: bool = False

    def limit_mib(self, uuid: str) -> int:
        """Return what the claim may use of a card."""
        return sum(d.memory_mib for d in self.binding.devices if d.card == uuid)

    def first_ceiling_mib(self, uuid: str) -> int:
        """Return what it may have used before anybody looked."""
        if not self.changed:
            return self.limit_mib(uuid)
        return sum(d.consumed_memory_mib for d in self.binding.devices if d.card == uuid)


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process has of one card.

    Attributes:
        uuid: The card.
        pid: In the node's PID namespace.
        used_mib: MiB, rounded up, the driver's own share included.
        pod_uid: Of the pod that it runs in; ``None``: in none.
    """

    uuid: str
    pid: int
    used_mib: int
    pod_uid: str | None


@dataclass(frozen=True, slots=True)
class Excess:
    """More of a card than was granted.

    Attributes:
        uuid: The card.
        pods: Who shares the grant; the one that uses most comes first.
        claims: ``namespace/name`` of their claims on the card.
        used_mib: What their processes have.
        granted_mib: What they may have.
        allowance_mib: What is let pass on top, for the driver's own use.
    """

    uuid: str
    pods: tuple[Pod, ...]
    claims: tuple[str, ...]
    used_mib: int
    granted_mib: int
    allowance_mib: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one reading said.

    Attributes:
        excesses: Those seen often enough.
        begun: Those of them that were not in the reading before.
        unclaimed_mib: By card, what pods without a claim on it use.
    """

    excesses: tuple[Excess, ...]
    begun: tuple[Excess, ...]
    unclaimed_mib: Mapping[str, int]


@dataclass(slots=True)
class _Account:
    """What is remembered of one group on one card between two readings."""

    ceiling_mib: int
    seen: int = 0


@dataclass(slots=True)
class Auditor:
    """Judges readings, one after the other.

    Pods that share a claim share its budget, so they are judged together, and so are all shares of
    one card in a pod: which of a pod's containers uses whose is libvgpu's to say, and the pod's
    own affair.

    Attributes:
        context_mib: What each process may have besides, for the driver's own use.
    """

    context_mib: int
    _accounts: dict[tuple[str, frozenset[str]], _Account] = field(default_factory=dict)

    def judge(self, held: Iterable[HeldClaim], uses: Collection[ProcessUse]) -> Judgement:
        """Compare a reading with what is granted."""
        excesses: list[Excess] = []
        begun: list[Excess] = []
        accounts: dict[tuple[str, frozenset[str]], _Account] = {}
        claimed: set[tuple[str, str]] = set()
        for uuid, claims in _by_card(held).items():
            for group in _group(claims):
                pods = frozenset[Pod]().union(*(claim.pods for claim in group))
                uids = frozenset(pod.uid for pod in pods)
                claimed |= {(uuid, uid) for uid in uids}
                devices = [d for c in group for d in c.binding.devices if d.card == uuid]
                if not pods or not all(is_limited(device) for device in devices):
                    continue
                mine = [use for use in uses if use.uuid == uuid and use.pod_uid in uids]
                used_mib = sum(use.used_mib for use in mine)
                key = uuid, frozenset(claim.binding.claim_uid for claim in group)
                account = self._accounts.get(key) or _Account(
                    sum(claim.first_ceiling_mib(uuid) for claim in group)
                )
                allowance_mib = self.context_mib * len(mine)
                granted_mib = max(
                    sum(claim.limit_mib(uuid) for claim in group), account.ceiling_mib
                )
                over = used_mib > granted_mib + allowance_mib
                accounts[key] = _Account(
                    # Nobody takes memory back when a limit is lowered: what was used before may
                    # stay, but what is given back is gone.
                    ceiling_mib=min(granted_mib, used_mib),
                    seen=account.seen + 1 if over else 0,
                )
                if over and account.seen + 1 >= _SEEN:
                    excess = Excess(
                        uuid=uuid,
                        pods=_order(pods, mine),
                        claims=tuple(
                            sorted(f"{c.binding.namespace}/{c.binding.name}" for c in group)
                        ),
                        used_mib=used_mib,
                        granted_mib=granted_mib,
                        allowance_mib=allowance_mib,
                    )
                    excesses.append(excess)
                    if account.seen + 1 == _SEEN:
                        begun.append(excess)
        self._accounts = accounts
        unclaimed: dict[str, int] = {}
        for use in uses:
            if use.pod_uid is not None and (use.uuid, use.pod_uid) not in claimed:
                unclaimed[use.uuid] = unclaimed.get(use.uuid, 0) + use.used_mib
        return Judgement(tuple(excesses), tuple(begun), unclaimed)


def read_pods(claim: Mapping[str, Any]) -> frozenset[Pod]:
    """Return the pods that a claim is reserved for."""
    metadata = claim.get("metadata") or {}
    return frozenset(
        Pod(str(metadata.get("namespace", "")), str(user.get("name", "")), str(user.get("uid", "")))
        for user in (claim.get("status") or {}).get("reservedFor") or ()
        if user.get("resource") == "pods" and not user.get("apiGroup")
    )


def is_limited(device: BoundDevice) -> bool:
    """Whether programs are held to less memory than the card has."""
    return device.controlled and not device.control_disabled and device.memory_mib > 0


def _by_card(held: Iterable[HeldClaim]) -> dict[str, list[HeldClaim]]:
    cards: dict[str, list[HeldClaim]] = {}
    for claim in held:
        for uuid in dict.fromkeys(device.card for device in claim.binding.devices):
            cards.setdefault(uuid, []).append(claim)
    return cards


def _group(claims: Iterable[HeldClaim]) -> list[list[HeldClaim]]:
    """Put claims together that have a pod in common, and so on."""
    groups: list[tuple[set[Pod], list[HeldClaim]]] = []
    for claim in claims:
        pods, members = set(claim.pods), [claim]
        apart = []
        for other_pods, others in groups:
            if pods & other_pods:
                pods |= other_pods
                members = others + members
            else:
                apart.append((other_pods, others))
        groups = [*apart, (pods, members)]
    return [members for _, members in groups]


def _order(pods: Iterable[Pod], uses: Iterable[ProcessUse]) -> tuple[Pod, ...]:
    used: dict[str | None, int] = {}
    for use in uses:
        used[use.pod_uid] = used.get(use.pod_uid, 0) + use.used_mib
    return tuple(sorted(pods, key=lambda pod: (-used.get(pod.uid, 0), pod)))
