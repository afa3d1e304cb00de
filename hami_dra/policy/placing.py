"""Can a node's devices satisfy claims together? The scheduler's search, for explanations.

Depth first, devices in the order of their slices, alternatives in the order of the claim
(k8s.io/dynamic-resource-allocation structured). It gives up after a number of steps, because the
question is as hard as packing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hami_dra.policy.asks import (
    TAINTED,
    Ask,
    ClaimAsk,
    consume,
    is_of_class,
    judge_free,
    judge_kind,
)
from hami_dra.policy.pools import PooledDevice, Usage, list_counters

_MOST_STEPS: Final = 20_000


class _GaveUpError(Exception):
    """Too many steps."""


@dataclass(slots=True)
class Search:
    """The devices of one node, and claims that want them.

    Attributes:
        devices: In the scheduler's order.
        usage: What is taken of them; left changed.
        claims: What is wanted.
        constrained: Whether attributes must agree or differ as the claims say.
    """

    devices: Sequence[PooledDevice]
    usage: Usage
    claims: Sequence[ClaimAsk]
    constrained: bool = True
    _steps: int = 0
    _suitable: dict[Ask, list[PooledDevice]] = field(default_factory=dict)
    _all: dict[Ask, list[PooledDevice]] = field(default_factory=dict)
    _chosen: dict[tuple[int, int], list[Any]] = field(default_factory=dict)

    def run(self) -> bool | None:
        """Return whether it can be done, ``None`` if that is not found out."""
        todo = [(at, wish) for at, claim in enumerate(self.claims) for wish in claim.wishes]
        options = [[(at, ask) for ask in wish.asks] for at, wish in todo]
        try:
            return any(self._satisfy(options, 0))
        except _GaveUpError:
            return None

    def _satisfy(self, options: Sequence[Sequence[tuple[int, Ask]]], index: int) -> Iterator[bool]:
        """Yield true once for every way to satisfy the wishes from ``index`` on."""
        if index == len(options):
            yield True
            return
        for at, ask in options[index]:
            count = ask.count
            if ask.every:
                count = len(self._list_every(ask))
                if not count:
                    continue
            for _ in self._take(at, ask, count, 0):
                yield from self._satisfy(options, index + 1)

    def _take(self, at: int, ask: Ask, count: int, start: int) -> Iterator[None]:
        """Yield once for every way to take devices, with the devices taken meanwhile."""
        if count == 0:
            yield
            return
        suitable = self._list_suitable(ask)
        for index in range(start, len(suitable) - count + 1):
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise _GaveUpError
            device = suitable[index]
            if next(judge_free(device, ask, self.usage), None) is not None:
                continue
            values = self._constrain(at, ask, device)
            if values is None:
                continue
            self._book(device, ask, 1)
            for key, value in values:
                self._chosen.setdefault(key, []).append(value)
            yield from self._take(at, ask, count - 1, index + 1)
            for key, _ in values:
                self._chosen[key].pop()
            self._book(device, ask, -1)

    def _list_of_class(self, ask: Ask) -> list[PooledDevice]:
        if ask not in self._all:
            chosen = [device for device in self.devices if is_of_class(device, ask)]
            self._all[ask] = chosen
        return self._all[ask]

    def _list_every(self, ask: Ask) -> list[PooledDevice]:
        """Return what "all" means: those that are selected and large enough, taken or not."""
        nothing = Usage()
        return [
            device
            for device in self._list_of_class(ask)
            if all(reason.code == TAINTED for reason in judge_kind(device, ask))
            and next(judge_free(device, ask, nothing), None) is None
        ]

    def _list_suitable(self, ask: Ask) -> list[PooledDevice]:
        if ask not in self._suitable:
            self._suitable[ask] = [
                device
                for device in self._list_of_class(ask)
                if next(judge_kind(device, ask), None) is None
            ]
        return self._suitable[ask]

    def _constrain(
        self, at: int, ask: Ask, device: PooledDevice
    ) -> list[tuple[tuple[int, int], Any]] | None:
        """Return the values to remember, ``None`` if a constraint forbids the device."""
        values: list[tuple[tuple[int, int], Any]] = []
        if not self.constrained:
            return values
        for index, constraint in enumerate(self.claims[at].constraints):
            if not constraint.concerns(ask):
                continue
            value = device.attribute(constraint.attribute)
            others = self._chosen.get((at, index), [])
            if value is None or any((value == other) is not constraint.equal for other in others):
                return None
            values.append(((at, index), value))
        return values

    def _book(self, device: PooledDevice, ask: Ask, sign: int) -> None:
        if ask.admin:
            return
        holders = self.usage.holders[device.key]
        if sign < 0:
            holders.pop()
        if not holders:
            for name, amount in list_counters(device):
                self.usage.counters[device.key[:2]][name] += sign * amount
        if sign > 0:
            holders.append("this pod")
        if device.shared:
            for name in device.capacity:
                self.usage.consumed[device.key][name] += sign * (consume(device, ask, name) or 0)
