"""Who works on a card, who is alone on it, and who has to wait for whom.

HAMi's words: under the core policy "default" a share is limited while others work on the card; a
task of a lower priority (a greater number) waits while one of a higher priority works.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from hami_dra.contract.region import RegionDevice
from hami_dra.policy.shares import OwnedUse, Share, ShareName
from hami_dra.policy.trim import CHARGED_MOST_US, Trim, TrimReading, step_trim

HOLD_SECONDS: Final = 3.0
"""How long work counts after it was last seen: the driver's count lags by up to a second."""
_CUT_PERMILLE: Final = 5
"""NVML tells whole percents, cut off: the middle of what may be missing of each process."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How shares stand to each other.

    Attributes:
        active: Those that work, or did a moment ago.
        working: Those of them that were seen to at this reading.
        alone: Those beside which nobody works.
        rivals: By share that a gate can hold, those that it has to wait for when they work.
    """

    active: frozenset[ShareName]
    working: frozenset[ShareName]
    alone: frozenset[ShareName]
    rivals: Mapping[ShareName, frozenset[ShareName]]


@dataclass(slots=True)
class _Account:
    """What is remembered of a share between two readings."""

    busy_ns: int
    long_ns: int
    due_ns: int


@dataclass(slots=True)
class Arbiter:
    """Judges readings, one after the other."""

    _accounts: dict[ShareName, _Account] = field(default_factory=dict)
    _worked: dict[ShareName, float] = field(default_factory=dict)
    _strangers: dict[str, float] = field(default_factory=dict)
    _trims: dict[ShareName, Trim] = field(default_factory=dict)
    _read: float | None = None

    def judge(
        self,
        shares: Sequence[Share],
        owned: Sequence[OwnedUse] | None,
        devices: Mapping[ShareName, RegionDevice],
        *,
        held: frozenset[ShareName],
        now: float,
    ) -> Standing:
        """Say who works and who is alone.

        What cannot be seen counts as work: a limit that holds without need costs speed, one that
        is lifted without right costs the neighbour.

        Args:
            shares: All on this node.
            owned: What the driver lists; ``None`` if it does not answer.
            devices: What the regions say.
            held: Shares that a gate holds now.
            now: Seconds of a clock that never goes back.
        """
        self._note_work(shares, owned, devices, now)
        active = frozenset(n for n, at in self._worked.items() if now - at < HOLD_SECONDS)
        crowded = {u for u, at in self._strangers.items() if now - at < HOLD_SECONDS}
        together = _find_together(owned or ())
        alone, rivals = set(), {}
        on_card: dict[str, list[Share]] = {}
        for share in shares:
            on_card.setdefault(share.uuid, []).append(share)
        for share in shares:
            own = together.get(share.name, frozenset()) | {share.name}
            others = [other for other in on_card[share.uuid] if other.name not in own]
            beside = (o for o in others if o.name in active and not _gives_way(o, share, held))
            if share.uuid not in crowded and not any(beside):
                alone.add(share.name)
            first = frozenset(other.name for other in others if other.priority < share.priority)
            if first and share.is_paced:
                rivals[share.name] = first
        working = frozenset(name for name in active if self._worked[name] == now)
        return Standing(active, working, frozenset(alone), rivals)

    def _note_work(
        self,
        shares: Sequence[Share],
        owned: Sequence[OwnedUse] | None,
        devices: Mapping[ShareName, RegionDevice],
        now: float,
    ) -> None:
        names = {share.name for share in shares}
        self._worked = {name: at for name, at in self._worked.items() if name in names}
        for share in shares:
            if self._has_launched(share.name, devices.get(share.name)) or owned is None:
                self._worked[share.name] = now
        for item in owned or ():
            if item.use.busy_permille == 0:
                continue
            for share in item.shares:
                self._worked[share.name] = now
            if not item.shares:
                self._strangers[item.use.uuid] = now

    def trim(
        self,
        shares: Sequence[Share],
        owned: Sequence[OwnedUse],
        devices: Mapping[ShareName, RegionDevice],
        *,
        alone: frozenset[ShareName],
        now: float,
    ) -> dict[ShareName, int]:
        """Return by how much each share's charges are to be corrected from now on.

        Shares that are used together are paid from all at once; the first one's factor holds.
        `now` is of CLOCK_MONOTONIC, as the times in regions are.
        """
        elapsed_ns = 0 if self._read is None else max(int((now - self._read) * 1e9), 1)
        self._read = now
        trims: dict[ShareName, Trim] = {}
        on_card: dict[str, list[int | None]] = {}
        payers: dict[ShareName, list[OwnedUse]] = {}
        for item in owned:
            on_card.setdefault(item.use.uuid, []).append(item.use.busy_permille)
            for first in item.shares[:1]:
                payers.setdefault(first.name, []).append(item)
        for share in shares:
            device = devices.get(share.name)
            known = self._accounts.get(share.name)
            if device is None or known is None or not elapsed_ns:
                continue
            mine = payers.get(share.name, [])
            bill = max((item.shares for item in mine), key=len, default=(share,))
            lifted = any(part.name in alone for part in bill)
            times = on_card.get(share.uuid, [])
            if None in times:
                continue
            seen = sum(item.use.busy_permille or 0 for item in mine)
            workers = sum(1 for item in mine if item.use.busy_permille)
            trims[share.name] = step_trim(
                self._trims.get(share.name, Trim()),
                TrimReading(
                    limit=0 if lifted else sum(part.permille for part in bill),
                    observed=seen + workers * _CUT_PERMILLE,
                    others=sum(time or 0 for time in times) - seen,
                    charged_us=_each_second(device.busy_ns - known.busy_ns, elapsed_ns),
                    long_us=_each_second(device.long_ns - known.long_ns, elapsed_ns),
                    owes=device.due_ns > now * 1e9,
                ),
            )
        self._trims = trims
        return {name: trim.permille for name, trim in trims.items()}

    def remember(self, devices: Mapping[ShareName, RegionDevice]) -> None:
        """Keep what the regions say, for the next reading to be compared with."""
        self._accounts = {
            name: _Account(device.busy_ns, device.long_ns, device.due_ns)
            for name, device in devices.items()
        }

    def _has_launched(self, name: ShareName, device: RegionDevice | None) -> bool:
        known = self._accounts.get(name)
        if device is None:
            return False
        if known is None:
            return device.busy_ns != 0
        return (known.busy_ns, known.due_ns) != (device.busy_ns, device.due_ns)


def _each_second(charged_ns: int, elapsed_ns: int) -> int:
    """Return microseconds; what a tenant wrote may be any number."""
    return min(max(charged_ns * 1_000_000 // elapsed_ns, -CHARGED_MOST_US), CHARGED_MOST_US)


def _gives_way(other: Share, share: Share, held: frozenset[ShareName]) -> bool:
    return other.priority > share.priority and other.name in held


def _find_together(owned: Iterable[OwnedUse]) -> dict[ShareName, frozenset[ShareName]]:
    """Return what each share is used together with by one process."""
    together: dict[ShareName, frozenset[ShareName]] = {}
    for item in owned:
        names = frozenset(share.name for share in item.shares)
        for name in names:
            together[name] = together.get(name, frozenset()) | names
    return together
