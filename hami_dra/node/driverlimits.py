"""Sets the driver's own memory limits under libvgpu's, where an operator wants them (driver 615).

A container's group exists only once its runtime has made it, after Prepare and without a word to
us. So the groups of the pods of prepared claims are looked for again and again, and a limit is set
on each that is new: as a rule before a program in it has come to use a card. It is set
again now and then, since a driver that is reloaded forgets it, and so after a restart of this
process. It goes with the group; where a claim ends before its containers, it is lifted. Where
nobody wants limits and none is set, nothing is looked at.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.contract.nodeconfig import MemoryBackend
from hami_dra.gpu.memorylimits import CardBackend, NoLimitsError
from hami_dra.gpu.processes import ProcessSource
from hami_dra.kubeletplugin.publisher import always_lead
from hami_dra.node.containergroups import find_container_groups
from hami_dra.policy.audit import HeldClaim, ProcessUse
from hami_dra.policy.driverlimits import DriverHold, plan_ceilings

_log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 1.0
"""A program takes longer from its start to its first allocation; Python alone takes a second to
import what it computes with."""
_UNWANTED_SECONDS: Final = 10.0
"""Between two looks while no limits are wanted; whoever wants them says so."""
_LOOKS: Final = 30
"""Every so many limits are set that should be there, and the driver is asked what it can do."""

_Key = tuple[str, Path]


class MemoryLimits(Protocol):
    """What `gpu.memorylimits.DriverMemoryLimits` does."""

    async def find_backends(self) -> tuple[CardBackend, ...]:
        """Return who could hold limits, card by card."""
        ...

    async def set_limit(
        self, uuid: str, group: Path, *, hard_bytes: int | None, soft_bytes: int = 0
    ) -> None:
        """Limit a group on a card; without a hard and a soft limit, lift what was there."""
        ...


class DriverLimits:
    """Looks and sets again and again.

    Args:
        limits: The driver's.
        processes: Lists processes on cards.
        held: Returns the claims that are prepared here, with their pods.
        cgroups: Where the host's control groups of version 2 are mounted.
        backend: Returns what the operator wants. Call `refresh` when it is something else.
        context_mib: What each process may have beside its grant.
        on_change: Called with the UID of a claim when `holds` says something else of it.
        leads: Whether this instance is to set them; asked before every look.
    """

    def __init__(
        self,
        limits: MemoryLimits,
        processes: ProcessSource,
        held: Callable[[], Sequence[HeldClaim]],
        *,
        cgroups: Path,
        backend: Callable[[], MemoryBackend],
        context_mib: int,
        on_change: Callable[[str], None],
        leads: Callable[[], Awaitable[bool]] = always_lead,
    ) -> None:
        self._limits = limits
        self._processes = processes
        self._held = held
        self._cgroups = cgroups
        self._backend = backend
        self._context_mib = context_mib
        self._on_change = on_change
        self._leads = leads
        self._looks = 0
        self._backends: dict[str, CardBackend] | None = None
        self._set: dict[_Key, int] = {}
        self._refused: dict[_Key, str] = {}
        self._holds: dict[str, dict[str, DriverHold]] = {}
        self._judged: frozenset[str] = frozenset()
        self._blind = False
        self._news = asyncio.Event()

    def holds(self, claim_uid: str) -> Mapping[str, DriverHold] | None:
        """Return what there is to say of a claim, by UUID of the card.

        ``None``: nothing yet; what was said of it before may still be true.
        """
        if self._backend() != "hooks" and claim_uid not in self._judged:
            return None
        return self._holds.get(claim_uid, {})

    def count(self) -> Mapping[str, int]:
        """Return how many groups the driver holds, by UUID of the card."""
        return Counter(uuid for uuid, _ in self._set)

    def refresh(self) -> None:
        """Look soon: the operator may want something else."""
        self._news.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._news.clear()
            await self.look()
            if self._backend() != "hooks" or self._set:
                await asyncio.sleep(INTERVAL_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_UNWANTED_SECONDS):
                    await self._news.wait()

    async def look(self) -> None:
        """Set what is missing, lift what is too much. Never raises for what is outside."""
        if not await self._leads():
            # What was set stays; the instance that leads sets the same.
            self._set, self._holds, self._judged, self._backends = {}, {}, frozenset(), None
            return
        wanted = self._backend()
        held = self._held() if wanted != "hooks" else []
        if not held and not self._set:
            self._tell(held, {})
            return
        try:
            await self._look(held)
        except HamiDraError as error:
            if not self._blind:
                _log.warning("driver_limits.blind", error=str(error))
            self._blind = True
            self._tell(held, self._describe_blind(held, str(error)))
            return
        self._blind = False

    async def _look(self, held: Sequence[HeldClaim]) -> None:
        if self._backends is None or self._looks % _LOOKS == 0:
            self._backends = {card.uuid: card for card in await self._limits.find_backends()}
            self._set_again()
        self._looks += 1
        able = {uuid for uuid, card in self._backends.items() if card.backend is not None}
        uses = await self._list_uses() if held and able else ()
        ceilings = {
            key: ceiling
            for key, ceiling in plan_ceilings(held, uses, context_mib=self._context_mib).items()
            if key[0] in able
        }
        pods = {pod for _, pod in ceilings}
        groups = await asyncio.to_thread(find_container_groups, self._cgroups, pods)
        plan = {
            (uuid, group): ceilings[uuid, pod]
            for group, pod in groups.items()
            for uuid in able
            if (uuid, pod) in ceilings
        }
        await self._apply(plan)
        self._tell(held, self._describe(held, plan, groups))

    def _set_again(self) -> None:
        """Believe no limit to be there any more; what has to be lifted is remembered."""
        self._set = dict.fromkeys(self._set, -1)

    async def _list_uses(self) -> tuple[ProcessUse, ...]:
        return tuple(
            ProcessUse(p.uuid, p.pid, p.used_mib, p.place.pod_uid if p.place else None)
            for p in await self._processes.list_processes()
        )

    async def _apply(self, plan: Mapping[_Key, int]) -> None:
        refused: dict[_Key, str] = {}
        for key in set(self._set) - set(plan):
            if await self._try(key, None, refused):
                del self._set[key]
        for key, ceiling in plan.items():
            if self._set.get(key) != ceiling and await self._try(key, ceiling, refused):
                self._set[key] = ceiling
        for key, reason in refused.items():
            if self._refused.get(key) != reason:
                _log.warning("driver_limits.refused", card=key[0], group=str(key[1]), error=reason)
        self._refused = refused

    async def _try(self, key: _Key, ceiling: int | None, refused: dict[_Key, str]) -> bool:
        """Set or lift a limit; return whether there is nothing left to do."""
        uuid, group = key
        try:
            await self._limits.set_limit(uuid, group, hard_bytes=ceiling)
        except (HamiDraError, ValueError) as error:
            if not group.exists():
                return ceiling is None  # and the limit is gone with it
            refused[key] = str(error)
            # What this driver does not hold, it has nothing of to lift.
            return ceiling is None and isinstance(error, NoLimitsError)
        return True

    def _describe(
        self, held: Sequence[HeldClaim], plan: Mapping[_Key, int], groups: Mapping[Path, str]
    ) -> dict[str, dict[str, DriverHold]]:
        found: dict[str, dict[str, DriverHold]] = {}
        for claim in held:
            uids = {pod.uid for pod in claim.pods}
            for uuid in {device.card for device in claim.binding.devices}:
                keys = [key for key in plan if key[0] == uuid and groups[key[1]] in uids]
                hold = self._describe_one(uuid, keys)
                if hold is not None:
                    found.setdefault(claim.binding.claim_uid, {})[uuid] = hold
        return found

    def _describe_one(self, uuid: str, keys: Sequence[_Key]) -> DriverHold | None:
        card = (self._backends or {}).get(uuid)
        if card is None or card.backend is None:
            if self._backend() != "driver":
                return None
            reason = card.reason if card is not None else "the driver does not describe the card"
            return DriverHold("Unsupported", reason)
        if not keys:
            message = "no container of the claim's pods is here yet, or any more"
            return DriverHold("NoContainer", message)
        failures = [self._refused[key] for key in keys if key in self._refused]
        if failures:
            return DriverHold("Refused", failures[0])
        return DriverHold(
            "Held",
            f"the driver ({card.backend}) holds each container to what its pod was granted of the "
            f"card, and {self._context_mib} MiB more for each process and the next one",
            holds=True,
        )

    def _describe_blind(
        self, held: Sequence[HeldClaim], error: str
    ) -> dict[str, dict[str, DriverHold]]:
        """Say that nobody knows, where an operator relies on the driver."""
        if self._backend() != "driver":
            return {}
        hold = DriverHold("Unknown", error)
        return {
            claim.binding.claim_uid: {device.card: hold for device in claim.binding.devices}
            for claim in held
        }

    def _tell(self, held: Sequence[HeldClaim], holds: dict[str, dict[str, DriverHold]]) -> None:
        before, self._holds = self._holds, holds
        judged = frozenset(claim.binding.claim_uid for claim in held)
        new, self._judged = judged - self._judged, judged
        for uid in new | set(before) | set(holds):
            if uid in new or before.get(uid) != holds.get(uid):
                self._on_change(uid)
