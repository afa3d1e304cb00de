"""The MIG instances that this program makes for claims, and ends again.

Whose an instance is says the ledger alone. Before an instance is made, the intent with its place is
on disk, and nothing else was at that place; so what is found at the place of a recorded claim of
this boot is that claim's. Everything else on a card is somebody else's: it is never ended, and its
place is not offered. Instances do not outlive a reboot, so records of earlier boots own nothing.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import structlog

from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.gpu.mig import InstanceControl, InstanceRefusedError
from hami_dra.node.ledger import Ledger
from hami_dra.policy.binding import Binding, BoundDevice, BoundPart
from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.mig import Instance, Place, overlap
from hami_dra.policy.migdevices import (
    ALL_CARDS,
    MigDevice,
    index_by_name,
    is_divided,
    is_dynamic,
    list_mig_devices,
    place_of,
)
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

MIG_PREPARE_STEPS: Final = ("mig-instance", "mig-part", "ledger-instances")
MIG_UNPREPARE_STEPS: Final = ("unprepare-mig",)

Step = Callable[[str], None]


class Partitions:
    """Knows which instances are ours. One per node process.

    Args:
        control: Makes and ends instances.
        ledger: Says whose they are, also those of another instance of this program.
        chosen: Returns which cards this program divides: UUIDs, indices or "all".
        boot_id: Of the running kernel.
        clock: The one by which facts about cards are dated.
    """

    def __init__(
        self,
        control: InstanceControl,
        ledger: Ledger,
        *,
        chosen: Callable[[], Collection[str]],
        boot_id: str,
        clock: Clock,
    ) -> None:
        self._control = control
        self._ledger = ledger
        self._choose = chosen
        self._boot_id = boot_id
        self._clock = clock
        self._ours: dict[Place, str] = {}
        self._changes = 0
        self._ended: dict[Place, float] = {}
        self._switching: frozenset[str] = frozenset()
        self._switched: dict[str, float] = {}
        self._refusals: dict[str, str] = {}

    @property
    def chosen(self) -> frozenset[str]:
        """Cards that this program divides now."""
        return frozenset(self._choose())

    def is_foreign(self, gpu: GpuFacts, instance: Instance) -> bool:
        """Whether somebody else made an instance, as far as facts of that age can tell."""
        place = (gpu.uuid, instance.start, instance.size)
        read_at = gpu.mig.read_at if gpu.mig is not None else 0.0
        return place not in self._ours and read_at > self._ended.get(place, -1.0)

    def index(self, gpus: Iterable[GpuFacts]) -> Mapping[str, MigDevice]:
        """Return the devices of divided cards by name: what is published, and what is held.

        A place that a claim holds stays the claim's when its card is no longer ours to divide.
        """
        cards = list(gpus)
        every = list_mig_devices(cards, {ALL_CARDS}, self.is_foreign)
        held = [device for device in every if place_of(device) in self._ours]
        return index_by_name([*held, *list_mig_devices(cards, self.chosen, self.is_foreign)])

    def list_present(self, gpus: Iterable[GpuFacts]) -> list[MigDevice]:
        """Return the devices whose instances exist, or are about to: found, or held by claims."""
        found = self.index(gpus).values()
        return [part for part in found if not part.dynamic or place_of(part) in self._ours]

    async def refresh(self) -> bool:
        """Learn from the ledger which places are ours; return whether that is news.

        Another instance of this program may have made and ended some since.

        Raises:
            RetryError: The ledger does not answer.
        """
        while True:
            changes = self._changes
            records = await self._ledger.records()
            if changes == self._changes:
                break  # else what was read may be older than what is known
        ours = {
            _place(part): record.binding.claim_uid
            for record in records
            for part in self._own_parts(record.binding)
        }
        if ours == self._ours:
            return False
        now = self._clock.monotonic()
        self._ended |= dict.fromkeys(self._ours.keys() - ours.keys(), now)
        self._ours = ours
        return True

    def own(self, binding: Binding) -> None:
        """Take note that the places of a claim are ours; it is in the ledger already."""
        self._changes += 1
        for part in self._own_parts(binding):
            self._ours[_place(part)] = binding.claim_uid

    def disown(self, binding: Binding) -> None:
        """Take note that the instances of a claim have ended; it has left the ledger."""
        self._changes += 1
        for part in self._own_parts(binding):
            self._ours.pop(_place(part), None)
            self._ended[_place(part)] = self._clock.monotonic()

    def plan(self, binding: Binding, known: Binding | None) -> Binding:
        """Date the parts of a binding, and take over which instances it has already."""
        held = {_name(part): part for part in self._own_parts(known)} if known else {}

        def date(device: BoundDevice) -> BoundDevice:
            if device.mig is None or not device.mig.dynamic:
                return device
            part = held.get(_name(device.mig), device.mig)
            return replace(device, mig=replace(part, boot_id=self._boot_id))

        return replace(binding, devices=tuple(date(device) for device in binding.devices))

    async def check_free(self, binding: Binding, known: Binding | None) -> None:
        """Make sure that nothing of others is at the places that a claim does not own yet.

        What other claims of ours have there is the ledger's to say.

        Raises:
            RetryError: An instance of somebody else is; or the driver does not answer.
        """
        held = {_name(part) for part in self._own_parts(known)} if known else set()
        for device in binding.devices:
            part = device.mig
            if part is None or not part.dynamic or _name(part) in held:
                continue
            for found in await self._control.list_instances(part.card):
                ours = (part.card, found.start, found.size) in self._ours
                if not ours and overlap(part.start, part.size, found.start, found.size):
                    raise RetryError(
                        f"device {device.device}: MIG instance {found.number} is at slices "
                        f"{found.start}-{found.start + found.size - 1} of card {part.card}, and "
                        "this program has not made it; end it (nvidia-smi mig -dgi), or delete "
                        "the pod so that its claim is allocated anew"
                    )

    async def create(self, binding: Binding, known: Binding | None, step: Step) -> Binding:
        """Make the instances of a claim whose intent is on disk. Idempotent.

        Args:
            binding: The plan.
            known: What was recorded before the intent: only at its places may be something of ours.
            step: See `MIG_PREPARE_STEPS`.

        Returns:
            The binding with what they are.

        Raises:
            InstanceRefusedError: One was not made, and none of those is left that were new.
            RetryError: One cannot be made; what was made stays, recorded as the claim's.
        """
        held = {_name(part) for part in self._own_parts(known)} if known else set()
        devices: list[BoundDevice] = []
        new: list[BoundDevice] = []
        try:
            for device in binding.devices:
                part = device.mig
                if part is not None and part.dynamic:
                    fresh = _name(part) not in held
                    part = await self._ensure(part, step, fresh=fresh)
                    new += [replace(device, mig=part)] if fresh else []
                devices.append(replace(device, mig=part))
        except InstanceRefusedError:
            await self.destroy(replace(binding, devices=tuple(new)))
            raise
        return replace(binding, devices=tuple(devices))

    async def destroy(self, binding: Binding) -> None:
        """End the instances of a claim. Idempotent; others' are never touched.

        Raises:
            RetryError: A process still uses one, or the driver does not answer.
        """
        for part in self._own_parts(binding):
            found = await self._find(part)
            if found is not None:
                await self._control.destroy(part.card, found.number)
                _log.info("mig.ended", card=part.card, instance=found.number, start=part.start)

    async def drop(self, held: Binding, binding: Binding) -> None:
        """End the instances that a claim had and has no more. Idempotent.

        Raises:
            RetryError: See `destroy`.
        """
        kept = {_name(device.mig) for device in binding.devices if device.mig is not None}
        stale = replace(
            held,
            devices=tuple(
                device
                for device in held.devices
                if device.mig is not None and _name(device.mig) not in kept
            ),
        )
        await self.destroy(stale)
        self.disown(stale)

    @contextmanager
    def switching(self, uuids: Iterable[str]) -> Iterator[None]:
        """Let `check_whole` refuse these cards for the length of a block."""
        self._switching = frozenset(uuids)
        try:
            yield
        finally:
            self._switching = frozenset()

    def check_whole(self, binding: Binding, gpus: Mapping[str, GpuFacts]) -> None:
        """Make sure that no card of which a claim has a share is divided, or about to be.

        To be called when the claim is in the ledger: whoever switches a card says so first and
        reads the ledger then, so one of the two sees the other.

        Raises:
            RetryError: One is.
        """
        for device in binding.devices:
            gpu = gpus.get(device.device)
            if device.mig is None and (
                device.uuid in self._switching or (gpu is not None and self._is_switched(gpu))
            ):
                raise RetryError(
                    f"card {device.device} has just been switched to MIG mode; delete the pod so "
                    "that its claim is allocated anew"
                )

    def _is_switched(self, gpu: GpuFacts) -> bool:
        """Whether a card is divided, by facts that may be older than the switch."""
        if gpu.mig is None:
            return False
        return gpu.mig.enabled or gpu.mig.read_at <= self._switched.get(gpu.uuid, -1.0)

    def list_waiting(self, gpus: Iterable[GpuFacts]) -> list[GpuFacts]:
        """Return the cards that are to be divided and are not in MIG mode."""
        return [gpu for gpu in gpus if is_dynamic(gpu, self.chosen) and not is_divided(gpu)]

    async def switch_modes(self, gpus: Iterable[GpuFacts], held: Collection[str]) -> bool:
        """Switch cards that we are to divide to MIG mode; return whether any was switched.

        Args:
            gpus: The node's cards.
            held: UUIDs of cards that claims have shares of: those must stay as they are.
        """
        switched = False
        for gpu in self.list_waiting(gpus):
            if gpu.uuid in held:
                continue
            try:
                enabled = await self._control.enable(gpu.uuid)
                reason = "" if enabled else "the card wants a reset first: nvidia-smi --gpu-reset"
            except HamiDraError as error:
                enabled, reason = False, str(error)
            if reason != self._refusals.get(gpu.uuid, ""):
                # Once for each reason: it is tried again and again.
                _log.warning("mig.not_enabled", card=gpu.uuid, reason=reason)
            self._refusals[gpu.uuid] = reason
            if enabled:
                self._switched[gpu.uuid] = self._clock.monotonic()
            switched = switched or enabled
        return switched

    def _own_parts(self, binding: Binding) -> list[BoundPart]:
        """Return what a claim may have made in this boot."""
        return [
            device.mig
            for device in binding.devices
            if device.mig is not None and device.mig.dynamic and device.mig.boot_id == self._boot_id
        ]

    async def _find(self, part: BoundPart) -> Instance | None:
        """Return the instance of a recorded part, if it exists.

        One at its place that has another UUID than ours had was made by somebody else since. Where
        nothing but the intent is recorded, one that is not as we make them was as well.
        """
        for found in await self._control.list_instances(part.card):
            if (part.card, found.profile, found.start, found.size) == _name(part):
                return found if _may_be(found, part) else None
        return None

    async def _ensure(self, part: BoundPart, step: Step, *, fresh: bool) -> BoundPart:
        # What is at a place that was free a moment ago is not ours: the driver then refuses.
        found = None if fresh else await self._find(part)
        if found is None:
            number = await self._control.create_instance(_place(part), part.profile)
            step("mig-instance")
        else:
            number = found.number
        made = next(iter(found.parts), None) if found is not None else None
        if made is None:
            made = await self._control.create_part(part.card, number)
            step("mig-part")
            _log.info("mig.made", card=part.card, instance=number, start=part.start, uuid=made.uuid)
        return replace(part, instance=number, part=made.number, uuid=made.uuid)


def _may_be(found: Instance, part: BoundPart) -> bool:
    """Whether an instance at the place of a recorded part may be what was made for it."""
    if not found.parts:
        return True  # the process died before it made the compute instance
    if part.uuid:
        return part.uuid in {each.uuid for each in found.parts}
    # Ours has one compute instance, which takes everything.
    return [each.slices for each in found.parts] == [found.slices]


def has_instances(binding: Binding) -> bool:
    """Whether a claim has MIG instances made for it."""
    return any(device.mig is not None and device.mig.dynamic for device in binding.devices)


def whole_cards(bindings: Iterable[Binding]) -> frozenset[str]:
    """Return the UUIDs of cards of which claims have shares."""
    return frozenset(
        device.uuid for binding in bindings for device in binding.devices if device.mig is None
    )


def _place(part: BoundPart) -> Place:
    return part.card, part.start, part.size


def _name(part: BoundPart) -> tuple[str, int, int, int]:
    """Return what tells an instance from others: two profiles may have the same places."""
    return part.card, part.profile, part.start, part.size
