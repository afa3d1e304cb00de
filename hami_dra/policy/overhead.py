"""What the driver has for a grant's processes beside what libvgpu charged them.

Contexts, loaded modules and partly used granules appear in no call that libvgpu could charge; the
driver's count of a process has them. So does memory that a program took without libvgpu, or charged
to a region that somebody removed: it comes out here, and counts against the grant.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from hami_dra.policy.shares import CardUse, OwnedUse, ShareName

_NOTHING: Final[Mapping[ShareName, int]] = {}

_Process = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """Of one process: what counts, and what the reading before said."""

    counted: int
    last: int | None


@dataclass(slots=True)
class OverheadMeter:
    """Measures readings, one after the other.

    The driver's count and the charges are not read at one moment. A process whose charges changed
    meanwhile keeps what it had; and what counts moves only as far as two readings agree, so one
    that fell between an allocation and its charge takes nothing from anybody.
    """

    _known: dict[_Process, _Known] = field(default_factory=dict)

    def measure(
        self,
        owned: Iterable[OwnedUse],
        charged_before: Mapping[tuple[str, int], int],
        taken: Mapping[ShareName, int] = _NOTHING,
    ) -> dict[ShareName, int]:
        """Return bytes by share; those without are not in it.

        Args:
            owned: Processes, with the charges after the driver was asked.
            charged_before: By card and pid, the charges before.
            taken: What libvgpu has charged to each share, all processes together.
        """
        known: dict[_Process, _Known] = {}
        found: dict[ShareName, int] = {}
        for item in owned:
            if not item.shares:
                continue
            use = item.use
            key = use.uuid, use.pid, use.start_ticks
            steady = charged_before.get((use.uuid, use.pid), 0) == item.charged_bytes
            known[key] = _learn(self._known.get(key), use, item.charged_bytes if steady else None)
            _spread(item, known[key].counted, found, taken)
        self._known = known
        return found


def _learn(known: _Known | None, use: CardUse, charged: int | None) -> _Known:
    if charged is None:
        return known or _Known(0, None)
    beside = max(use.used_bytes - charged, 0)
    if known is None or known.last is None:
        return _Known(0 if known is None else known.counted, beside)
    low, high = sorted((known.last, beside))
    return _Known(min(max(known.counted, low), high), beside)


def _spread(
    item: OwnedUse, amount: int, found: dict[ShareName, int], taken: Mapping[ShareName, int]
) -> None:
    """Charge shares as libvgpu fills them: in order, each to its limit, and the last the rest."""
    for share in item.shares:
        part = amount
        if share != item.shares[-1] and share.memory_bytes:
            full = found.get(share.name, 0) + taken.get(share.name, 0)
            part = min(amount, max(share.memory_bytes - full, 0))
        if part:
            found[share.name] = found.get(share.name, 0) + part
        amount -= part
