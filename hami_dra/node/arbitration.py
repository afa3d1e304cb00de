"""What only the node can see, told to the programs: in their regions, and in their grants.

Once a second NVML is asked what each process has and does. From that and from the regions follow,
for every share: the driver's own part of its memory, how its charges are to be corrected, whether
anybody else works on its card, and whether it has to wait for somebody of a higher priority. While
no share has a region there is nobody to be told, and NVML is asked now and then, for the metrics;
the kernel tells when something comes into a directory where a program makes one.

Only the instance that leads writes. Everything is told anew by the next instance, so nothing is
remembered on the disk; what a dead node left behind, libvgpu takes for stale (gates after two
seconds, corrections and who is alone ten seconds after the last heartbeat), or the next one
corrects.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from hami_dra.contract import names
from hami_dra.contract.errors import HamiDraError
from hami_dra.contract.region import RegionDevice, RegionView
from hami_dra.gpu.processes import CardProcess, ProcessSource
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.node.gates import Contest, Gates, Place
from hami_dra.node.regionfile import RegionFile, open_region, read_region
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.arbitration import Arbiter, Standing
from hami_dra.policy.audit import HeldClaim
from hami_dra.policy.overhead import OverheadMeter
from hami_dra.policy.shares import (
    WHOLE_PERMILLE,
    CardUse,
    GrantName,
    OwnedUse,
    ProcessOwners,
    Share,
    ShareName,
    list_shares,
)
from hami_dra.policy.trim import UNCHANGED
from hami_dra.service.clock import Clock
from hami_dra.service.directorywatch import DirectoryWatch

_log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 1.0
_UNUSED_SECONDS: Final = 10.0
"""Between two readings while no program has made a region."""
_SETTLE_SECONDS: Final = 0.1
"""From news to the look: a region is made under another name, and a pod's claims come together."""
_LONGEST_GAP_SECONDS: Final = 15.0
"""Between two readings: a node that was stopped does not count what it did not see."""
_MARK_SECONDS: Final = 10.0
"""How often a grant is told what it was told already: its file may have been made anew."""
_HEARTBEAT_SECONDS: Final = 3.0
"""How often a grant is told that somebody speaks; after ten seconds libvgpu believes it no more."""
_HEARTBEATS: Final = 2**32 - 1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShareFigures:
    """One share at the last reading.

    Attributes:
        share: Which, and what it was granted.
        device: What its region says; ``None`` before a program has made one.
        overhead_bytes: What the driver has beside what was charged.
        used_bytes: By the driver's count.
        busy_seconds: GPU time by the driver's count, since this process began to look.
        alone: Whether nobody else works on the card.
        held: Whether it has to wait for a higher priority.
    """

    share: Share
    device: RegionDevice | None
    overhead_bytes: int
    used_bytes: int
    busy_seconds: float
    alone: bool
    held: bool


@dataclass(frozen=True, slots=True)
class ArbitrationStatistics:
    """What was read and told.

    Attributes:
        readings: How often the driver was asked.
        failures: How often it did not answer.
        damaged: Regions that are none, at the last reading.
        shares: Figures of every share; empty where this instance does not lead.
    """

    readings: int = 0
    failures: int = 0
    damaged: int = 0
    shares: tuple[ShareFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scene:
    """What there is to look at, found once for as long as the claims stay what they are.

    Attributes:
        shares: Of these claims, in order.
        paths: Where each grant's region is.
    """

    shares: Sequence[Share] = ()
    paths: Mapping[GrantName, Path] = field(default_factory=dict)


@dataclass(slots=True)
class _Memory:
    """What is remembered between two readings; dropped with the lead.

    Attributes:
        scene: That of the last reading.
        looked: When it was.
    """

    owners: ProcessOwners = field(default_factory=ProcessOwners)
    meter: OverheadMeter = field(default_factory=OverheadMeter)
    arbiter: Arbiter = field(default_factory=Arbiter)
    busy_seconds: dict[ShareName, float] = field(default_factory=dict)
    overheads: Mapping[ShareName, int] = field(default_factory=dict)
    marks: dict[GrantName, tuple[tuple[bool, ...], float]] = field(default_factory=dict)
    read: float | None = None
    scene: _Scene | None = None
    looked: float = 0.0
    heartbeat: float | None = None


class Arbitration:
    """Reads, judges and tells again and again.

    Args:
        source: Lists processes on cards.
        held: Returns the claims that are prepared here, with their pods.
        directories: Where grants and regions are.
        files: Runs what touches grants; one thread.
        locks: Of claims: nobody else changes a grant meanwhile.
        gates: Holds launches back.
        leads: Whether this instance speaks for the driver. Call `refresh` when that changes, or
            what `held` returns.
        clock: Tells how much time has passed.
    """

    def __init__(
        self,
        source: ProcessSource,
        held: Callable[[], Sequence[HeldClaim]],
        *,
        directories: ShareDirectories,
        files: ThreadPoolExecutor,
        locks: ClaimLocks,
        gates: Gates,
        leads: Callable[[], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        self._source = source
        self._held = held
        self._directories = directories
        self._files = files
        self._locks = locks
        self._gates = gates
        self._leads = leads
        self._clock = clock
        self._news = asyncio.Event()
        self._listens = False
        self._watch = DirectoryWatch(self._news.set)
        self._memory = _Memory()
        self._known: tuple[HeldClaim, ...] = ()
        self._scene = _Scene()
        self._statistics = ArbitrationStatistics()
        self._readings = self._failures = 0
        self._blind = False
        self._damaged: frozenset[GrantName] = frozenset()
        self._untold: set[GrantName] = set()

    def statistics(self) -> ArbitrationStatistics:
        """Return what was read and told."""
        return self._statistics

    def refresh(self) -> None:
        """Look soon: the claims, their directories or who leads may have changed."""
        self._news.set()

    async def run(self) -> None:
        """Go on until cancelled; not more often than each second, whoever has news."""
        with self._watch:
            while True:
                self._news.clear()
                await self.look()
                if not self._listens:
                    await asyncio.sleep(INTERVAL_SECONDS)
                    continue
                await asyncio.sleep(INTERVAL_SECONDS - _SETTLE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_UNUSED_SECONDS - INTERVAL_SECONDS):
                        await self._news.wait()
                await asyncio.sleep(_SETTLE_SECONDS)

    async def look(self) -> None:
        """Read once, and tell what is new. Never raises for what is outside."""
        self._listens = False
        scene = self._set_scene()
        shares, paths = scene.shares, scene.paths
        if not shares or not await self._leads():
            self._memory = _Memory()
            self._gates.watch(())
            self._statistics = ArbitrationStatistics(self._readings, self._failures)
            self._listens = True
            return  # nothing to tell, and NVML may sleep
        if not await self._is_due(scene):
            return
        self._memory.scene, self._memory.looked = scene, self._clock.monotonic()
        before, _ = await self._read_regions(paths)
        uses = await self._list_uses()
        regions, damaged = await self._read_regions(paths)
        self._note_damaged(damaged)
        told = self._judge(shares, uses, before, regions)
        if told.devices:
            await self._in_thread(self._write, paths, told)
        self._gates.watch(_find_contests(shares, told, paths))
        await self._mark_alone(shares, told.standing)
        if self._is_untold(scene):
            self._listens = False
        if uses is not None:
            await self._tell_heartbeat(shares, told.devices.keys())

    def _set_scene(self) -> _Scene:
        held = tuple(self._held())
        # Claims that nobody looked at since are the same objects, so this compares pointers.
        changed, self._known = held != self._known, held
        if changed:
            shares = list_shares(held)
            paths = {
                grant: self._directories.region_path(grant.claim_uid, grant.request)
                for grant in dict.fromkeys(share.name.grant for share in shares)
            }
            self._scene = _Scene(shares, paths)
        return self._scene

    async def _is_due(self, scene: _Scene) -> bool:
        """Whether there is anybody to be told of what NVML says now, or it is time anyway.

        A grant says who is alone before its first program comes, so claims that changed are due.
        """
        memory = self._memory
        if await self._in_thread(self._find_region, scene.paths.values()):
            return True
        if memory.scene is not scene or self._is_untold(scene):
            return True
        return self._clock.monotonic() - memory.looked >= _UNUSED_SECONDS

    def _is_untold(self, scene: _Scene) -> bool:
        """Whether a grant has not been told who is alone, since somebody worked on its claim."""
        return bool(scene.paths.keys() - self._memory.marks.keys())

    def _find_region(self, directories: Collection[Path]) -> bool:
        """Whether a program has made one; if not, the next one is told of. Blocking."""
        if _has_region(directories):
            return True
        listens = self._watch.arm(directories)
        found = _has_region(directories)
        self._listens = listens and not found
        return found

    async def _read_regions(
        self, paths: Mapping[GrantName, Path]
    ) -> tuple[dict[GrantName, RegionView], dict[GrantName, str]]:
        """Do as the function, unless there is none as far as the kernel has told."""
        if self._listens and not self._news.is_set():
            return {}, {}
        return await self._in_thread(_read_regions, paths)

    def _judge(
        self,
        shares: Sequence[Share],
        uses: Sequence[CardUse] | None,
        before: Mapping[GrantName, RegionView],
        regions: Mapping[GrantName, RegionView],
    ) -> "_Told":
        memory, now = self._memory, self._clock.monotonic()
        devices = _find_devices(shares, regions)
        owned = None if uses is None else memory.owners.find(shares, uses, regions)
        standing = memory.arbiter.judge(shares, owned, devices, held=self._gates.held(), now=now)
        told = _Told(standing, devices, owned or [])
        names = {share.name for share in shares}
        memory.busy_seconds = {n: s for n, s in memory.busy_seconds.items() if n in names}
        if owned is not None and uses is not None:
            earlier = memory.owners.find(shares, uses, before)
            charged = {(item.use.uuid, item.use.pid): item.charged_bytes for item in earlier}
            taken = {name: device.used_bytes for name, device in devices.items()}
            told.overheads = memory.overheads = memory.meter.measure(owned, charged, taken)
            told.trims = memory.arbiter.trim(shares, owned, devices, alone=standing.alone, now=now)
            self._add_busy(owned, now)
        memory.arbiter.remember(devices)
        self._statistics = ArbitrationStatistics(
            readings=self._readings,
            failures=self._failures,
            damaged=len(self._damaged),
            shares=tuple(self._describe(shares, told)),
        )
        return told

    def _describe(self, shares: Iterable[Share], told: "_Told") -> Iterator[ShareFigures]:
        used: dict[ShareName, int] = {}
        for item in told.owned:
            for name, amount in item.split_bytes().items():
                used[name] = used.get(name, 0) + amount
        held = self._gates.held()
        for share in shares:
            yield ShareFigures(
                share=share,
                device=told.devices.get(share.name),
                overhead_bytes=self._memory.overheads.get(share.name, 0),
                used_bytes=used.get(share.name, 0),
                busy_seconds=self._memory.busy_seconds.get(share.name, 0.0),
                alone=share.name in told.standing.alone,
                held=share.name in held,
            )

    def _add_busy(self, owned: Iterable[OwnedUse], now: float) -> None:
        memory = self._memory
        elapsed = 0.0 if memory.read is None else min(now - memory.read, _LONGEST_GAP_SECONDS)
        memory.read = now
        for item in owned:
            if item.shares and item.use.busy_permille:
                name = item.shares[0].name
                known = memory.busy_seconds.get(name, 0.0)
                memory.busy_seconds[name] = known + elapsed * item.use.busy_permille / 1000

    async def _list_uses(self) -> list[CardUse] | None:
        try:
            processes = await self._source.list_processes(busy=True)
        except HamiDraError as error:
            self._failures += 1
            if not self._blind:
                _log.warning("arbitration.blind", error=str(error))
            self._blind = True
            return None
        self._blind = False
        self._readings += 1
        return [_describe_use(process) for process in processes]

    async def _mark_alone(self, shares: Sequence[Share], standing: Standing) -> None:
        told, now = self._memory.marks, self._clock.monotonic()
        wanted = {
            grant: tuple(share.name in standing.alone for share in own)
            for grant, own in group_by_grant(shares).items()
        }
        self._untold &= wanted.keys()
        due = {
            grant: marks
            for grant, marks in wanted.items()
            if grant not in told or told[grant][0] != marks or now - told[grant][1] >= _MARK_SECONDS
        }
        new = await self._find_new(due)
        self._memory.marks = {grant: told[grant] for grant in wanted.keys() - due.keys()}
        for grant, marks in due.items():
            if grant not in new or await self._mark_grant(grant, marks):
                self._memory.marks[grant] = marks, now

    async def _find_new(self, marks: Mapping[GrantName, tuple[bool, ...]]) -> set[GrantName]:
        """Return the grants that do not say so already, most of which do."""
        if not marks:
            return set()
        differs = self._directories.differs_alone

        def find() -> set[GrantName]:
            return {g for g, alone in marks.items() if differs(g.claim_uid, g.request, alone)}

        return await asyncio.get_running_loop().run_in_executor(self._files, find)

    async def _mark_grant(self, grant: GrantName, marks: tuple[bool, ...]) -> bool:
        loop = asyncio.get_running_loop()
        mark = partial(self._directories.mark_alone, grant.claim_uid, grant.request, marks)
        try:
            # Who prepares or changes the claim at this moment comes first.
            async with self._locks.try_hold(grant.claim_uid) as held:
                if held and await loop.run_in_executor(self._files, mark):
                    _log.debug("arbitration.alone", claim=grant.claim_uid, alone=marks)
        except HamiDraError as error:
            if grant not in self._untold:
                _log.warning("arbitration.not_told", claim=grant.claim_uid, error=str(error))
            self._untold.add(grant)
            return False
        self._untold.discard(grant)
        return held

    async def _tell_heartbeat(self, shares: Iterable[Share], used: Collection[ShareName]) -> None:
        """Say that what was told holds. A node that sees nothing has nothing to say.

        Grants without a program are left alone: a file that is written is gone through anew.
        """
        memory, now = self._memory, self._clock.monotonic()
        if memory.heartbeat is not None and now - memory.heartbeat < _HEARTBEAT_SECONDS:
            return
        memory.heartbeat = now
        # The next node begins with another number than the last one ended with.
        value = int(now * 1000) % _HEARTBEATS + 1
        grants = {share.name.grant for share in shares if share.is_paced and share.name in used}
        if grants:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._files, self._write_heartbeats, grants, value)

    def _write_heartbeats(self, grants: Iterable[GrantName], value: int) -> None:
        for grant in grants:
            with suppress(HamiDraError):  # said where it is told who is alone
                self._directories.write_heartbeat(grant.claim_uid, grant.request, value)

    def _write(self, paths: Mapping[GrantName, Path], told: "_Told") -> None:
        """Write what is new into the regions. Blocking."""
        by_grant: dict[GrantName, dict[ShareName, RegionDevice]] = {}
        for name, device in told.devices.items():
            by_grant.setdefault(name.grant, {})[name] = device
        for grant, devices in by_grant.items():
            with suppress(OSError, ValueError):  # the tenant's affair; said when it is read
                region = open_region(paths[grant], write=True)
                if region is None:
                    continue
                with region:
                    for name, device in devices.items():
                        _write_device(region, name, device, told, self._gates.held())
                    for item in told.owned:
                        slot = item.slots.get(grant)
                        if slot is not None and slot.host_pid != item.use.pid:
                            region.write_host_pid(slot.slot, item.use.pid)

    def _note_damaged(self, damaged: Mapping[GrantName, str]) -> None:
        for grant in damaged.keys() - self._damaged:
            _log.warning("region.damaged", claim=grant.claim_uid, error=damaged[grant])
        self._damaged = frozenset(damaged)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._gates.executor, work, *arguments)


@dataclass(slots=True)
class _Told:
    """One judgement, on its way to the regions.

    Attributes:
        standing: Who works, and who is alone.
        devices: What the regions say.
        owned: The driver's processes; none where it did not answer.
        overheads: Bytes by share; ``None`` where it did not: what was told goes on holding.
        trims: Factors by share; those without one keep what they have.
    """

    standing: Standing
    devices: Mapping[ShareName, RegionDevice]
    owned: list[OwnedUse]
    overheads: Mapping[ShareName, int] | None = None
    trims: Mapping[ShareName, int] = field(default_factory=dict)


def group_by_grant(shares: Iterable[Share]) -> dict[GrantName, list[Share]]:
    """Return shares by grant, each grant's in the order of its devices."""
    grouped: dict[GrantName, list[Share]] = {}
    for share in shares:
        grouped.setdefault(share.name.grant, []).append(share)
    return grouped


def _has_region(directories: Iterable[Path]) -> bool:
    """Whether a program has made one, or somebody something in its place. Blocking."""
    return any(os.path.lexists(f"{directory}/{names.REGION_FILE}") for directory in directories)


def _read_regions(
    paths: Mapping[GrantName, Path],
) -> tuple[dict[GrantName, RegionView], dict[GrantName, str]]:
    """Return regions that can be read, and why others cannot. Blocking."""
    views: dict[GrantName, RegionView] = {}
    damaged: dict[GrantName, str] = {}
    for grant, path in paths.items():
        try:
            view = read_region(path)
        except (OSError, ValueError) as error:
            damaged[grant] = str(error)
            continue
        if view is not None:
            views[grant] = view
    return views, damaged


def _find_devices(
    shares: Iterable[Share], regions: Mapping[GrantName, RegionView]
) -> dict[ShareName, RegionDevice]:
    """Return what the regions say of shares; a tenant may have written of other cards."""
    found = {}
    for share in shares:
        view = regions.get(share.name.grant)
        if view is not None and share.name.index < len(view.devices):
            device = view.devices[share.name.index]
            if device.uuid == share.uuid:
                found[share.name] = device
    return found


def _write_device(
    region: RegionFile,
    name: ShareName,
    device: RegionDevice,
    told: _Told,
    held: frozenset[ShareName],
) -> None:
    if told.overheads is not None and device.overhead_bytes != told.overheads.get(name, 0):
        region.write_overhead(name.index, told.overheads.get(name, 0))
    trim = told.trims.get(name)
    if trim is not None and trim != (device.trim_permille or UNCHANGED):
        region.write_trim(name.index, trim)
    if device.gate and name not in held:
        region.write_gate(name.index, 0)  # left by a node that is no more


def _find_contests(
    shares: Iterable[Share], told: _Told, paths: Mapping[GrantName, Path]
) -> list[Contest]:
    """Return who has to wait for whom, of those that have regions."""
    unseen = {
        share.name
        for share in shares
        # What is not limited now is not charged, so its launches show in no region.
        if not share.is_paced
        or (share.name in told.standing.alone and share.permille_alone == WHOLE_PERMILLE)
    }
    return [
        Contest(
            waits=Place(name, paths[name.grant]),
            rivals=tuple(Place(rival, paths[rival.grant]) for rival in sorted(rivals)),
            busy=bool(unseen & rivals & told.standing.working),
        )
        for name, rivals in sorted(told.standing.rivals.items())
        if name in told.devices
    ]


def _describe_use(process: CardProcess) -> CardUse:
    place, busy = process.place, process.busy_percent
    return CardUse(
        uuid=process.uuid,
        pid=process.pid,
        inner_pid=process.inner_pid,
        start_ticks=process.start_ticks,
        pid_namespace=process.pid_namespace,
        used_bytes=process.used_bytes,
        busy_permille=None if busy is None else busy * 10,
        pod_uid=place.pod_uid if place is not None else None,
        container_id=place.container_id if place is not None else "",
    )
