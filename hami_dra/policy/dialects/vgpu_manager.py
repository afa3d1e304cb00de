"""vgpu-manager: ``nvidia.com/vgpu-number``, ``vgpu-memory`` and ``vgpu-cores`` on containers.

Meaning: coldzerofear/vgpu-manager ``pkg/webhook/pod/mutate`` (what is filled in), ``pkg/scheduler``
and ``pkg/util`` (CheckDeviceType, CheckDeviceUuid). It reads limits only. The domain before the
slash is the operator's (`VgpuManagerSettings`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from hami_dra.contract.claimconfig import CorePolicy
from hami_dra.contract.dialectsettings import ComputePolicy
from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ATTR_STD_NUMA_NODE, ATTR_STD_PCIE_ROOT
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.cardlists import CardList, list_selectors, locate
from hami_dra.policy.dialects.hami_env import read_control
from hami_dra.policy.dialects.mib import read_mib
from hami_dra.policy.dialects.schedulers import warn_kept_scheduler
from hami_dra.policy.dialects.wholecards import refuse_whole_cards
from hami_dra.policy.podview import PodView
from hami_dra.policy.request import (
    MOST_CARDS,
    WHOLE_CORES_PERCENT,
    Enforcement,
    NodePolicy,
    Placement,
    PodRequest,
    Share,
    place_shares,
)
from hami_dra.policy.selectors import product_contains, uuid_contains
from hami_dra.policy.truth import parse_bool
from hami_dra.policy.written import Number, Written, keep_written, list_written

_SCHEDULERS: Final = ("vgpu-scheduler",)
_ENV_DISABLE: Final = "DISABLE_VGPU_CONTROL"
_COMPUTE: Final[Mapping[ComputePolicy, CorePolicy | None]] = {
    "fixed": "force",
    "balance": None,  # our library's own: throttled while others work on the card
    "none": "disable",
}
_ORDERS: Final[Mapping[str, NodePolicy]] = {"binpack": "binpack", "spread": "spread"}
_NUMA: Final = ("numa", "numa-strict")
_LINK: Final = ("link", "link-strict")


@dataclass(frozen=True, slots=True)
class _Names:
    """Keys below one domain."""

    domain: str

    @property
    def number(self) -> str:
        return f"{self.domain}/vgpu-number"

    @property
    def memory(self) -> str:
        return f"{self.domain}/vgpu-memory"

    @property
    def cores(self) -> str:
        return f"{self.domain}/vgpu-cores"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.number, self.memory, self.cores)

    @property
    def card_lists(self) -> tuple[CardList, ...]:
        return (
            CardList(f"{self.domain}/include-gpu-type", product_contains),
            CardList(f"{self.domain}/exclude-gpu-type", product_contains, refused=True),
            CardList(f"{self.domain}/include-gpu-uuid", uuid_contains),
            CardList(f"{self.domain}/exclude-gpu-uuid", uuid_contains, refused=True),
        )


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads."""
    return _Names(admission.vgpu_manager.domain).keys


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A number that means nothing, or an annotation that cannot be fulfilled, by its
            path.
    """
    names = _Names(admission.vgpu_manager.domain)
    found = list_written(pod, names.keys)
    if not found:
        return None
    refuse_whole_cards(pod, admission, names.number)
    warnings: list[str] = []
    wishes = _Wishes(pod.metadata.annotations or {}, names.domain, warnings)
    core_policy = _COMPUTE[wishes.read_compute(admission.vgpu_manager.compute_policy)]
    beside: list[Share] = []
    before: list[Share] = []
    for written in found:
        factor = admission.vgpu_manager.memory_factor
        share = _read_share(written, names, factor, core_policy, warnings)
        if share is not None:
            (beside if written.place.runs_beside_others else before).append(share)
    placement = Placement()
    if beside or before:
        warn_kept_scheduler(pod, admission, _SCHEDULERS, warnings)
        placement = wishes.read_placement(
            names, most_cards=max(share.cards for share in (*beside, *before))
        )
    shares, uses = place_shares(beside, before)
    return PodRequest(
        shares=shares,
        uses=uses,
        original=keep_written(found),
        keys=names.keys,
        warnings=tuple(warnings),
        placement=placement,
    )


def _read_share(
    written: Written,
    names: _Names,
    factor: int,
    core_policy: CorePolicy | None,
    warnings: list[str],
) -> Share | None:
    place = written.place
    limits = Written(place, {"limits": written.lists.get("limits", {})})
    number, cores = limits.read(names.number), limits.read(names.cores)
    memory = read_mib(limits, names.memory, factor)
    _check(number, MOST_CARDS)
    _check(cores, WHOLE_CORES_PERCENT)
    mib = memory.value if memory is not None else 0
    percent = cores.value if cores is not None else 0
    cards = number.value if number is not None else 0
    if cards == 0:
        if not (mib or percent):
            return None
        cards = 1
    if not (mib or percent):
        percent = WHOLE_CORES_PERCENT
    throttled = 0 < percent < WHOLE_CORES_PERCENT
    return Share(
        container=place.container.name,
        cards=cards,
        memory_mib=mib or None,
        cores_percent=percent,
        exclusive=percent == WHOLE_CORES_PERCENT,
        enforcement=Enforcement(
            core_policy=core_policy if throttled else None,
            control=read_control(place, warnings, _ENV_DISABLE),
        ),
    )


def _check(number: Number | None, most: int) -> None:
    if number is not None and number.value > most:
        raise UserError(f"is {number.value}; the most is {most}", field=number.field)


@dataclass(frozen=True, slots=True)
class _Wishes:
    """A pod's annotations; what they do not lead to goes to the warnings."""

    annotations: Mapping[str, str]
    domain: str
    warnings: list[str] = field(default_factory=list)

    def read_compute(self, usual: ComputePolicy) -> ComputePolicy:
        text = self._read("vgpu-compute-policy")
        for policy in _COMPUTE:
            if text == policy:
                return policy
        if text:
            self._warn(
                "vgpu-compute-policy",
                f"{text[:63]!r} is no policy (fixed, balance, none); taken as {usual!r}",
            )
        return usual

    def read_placement(self, names: _Names, most_cards: int) -> Placement:
        self._check_memory()
        self._check_access()
        topology = self._read_topology(most_cards)
        if parse_bool(self._read("cross-pod-topology")):
            self._warn("cross-pod-topology", "the scheduler places each pod alone; has no effect")
        near = {"numa": ATTR_STD_NUMA_NODE, "link": ATTR_STD_PCIE_ROOT}
        return Placement(
            selectors=tuple(list_selectors(self.annotations, names.card_lists)),
            one_numa_node=topology == "numa-strict",
            near=near.get(topology, ""),
            spread_cards=self._read_order("device-scheduler-policy") == "spread",
            nodes=self._read_order("node-scheduler-policy"),
        )

    def _read_order(self, name: str) -> NodePolicy:
        text = self._read(name)
        if text not in {"", "none", *_ORDERS}:
            self._warn(name, f"{text[:63]!r} is no policy (binpack, spread); has no effect")
        return _ORDERS.get(text, "")

    def _check_memory(self) -> None:
        text = self._read("memory-scheduler-policy")
        if text == "virtual":
            raise UserError(
                "is 'virtual', but no card here has more memory than it really has; remove the "
                "annotation",
                field=locate(f"{self.domain}/memory-scheduler-policy"),
            )
        if text not in {"", "none", "physical"}:
            self._warn(
                "memory-scheduler-policy",
                f"{text[:63]!r} is no policy (virtual, physical); has no effect",
            )

    def _check_access(self) -> None:
        if self._read("vgpu-access-mode") == "remote":
            raise UserError(
                "is 'remote', but cards are used on their own node here; remove the annotation",
                field=locate(f"{self.domain}/vgpu-access-mode"),
            )

    def _read_topology(self, most_cards: int) -> Literal["", "numa", "numa-strict", "link"]:
        text = self._read("device-topology-mode")
        if text not in {"", "none", *_NUMA, *_LINK}:
            self._warn(
                "device-topology-mode",
                f"{text[:63]!r} is no mode (they are {', '.join((*_NUMA, *_LINK))}); has no effect",
            )
        if most_cards == 1:
            return ""
        if text == "link-strict":
            raise UserError(
                "is 'link-strict', but the scheduler does not know the links between cards; write "
                "'link' for cards below one PCIe root if possible",
                field=locate(f"{self.domain}/device-topology-mode"),
            )
        if text == "link":
            self._warn(
                "device-topology-mode",
                "the scheduler does not know the links between cards; several cards below one "
                "PCIe root are preferred",
            )
            return "link"
        return "numa-strict" if text == "numa-strict" else "numa" if text == "numa" else ""

    def _read(self, name: str) -> str:
        return self.annotations.get(f"{self.domain}/{name}", "").strip().lower()

    def _warn(self, name: str, text: str) -> None:
        self.warnings.append(f"{locate(f'{self.domain}/{name}')}: {text}")
