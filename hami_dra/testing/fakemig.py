"""Cards that can be divided, without a driver."""

from dataclasses import dataclass, field, replace

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.mig import InstanceRefusedError
from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.mig import Instance, MigFacts, Part, Place, Profile, overlap
from hami_dra.testing.crashpoints import Point, report

A100_PROFILES = tuple(
    Profile(
        name=name,
        number=number,
        memory_mib=memory_mib,
        slices=slices,
        size=size,
        starts=starts,
        instances=instances,
        multiprocessors=14 * slices,
        engines=engines,
    )
    for name, number, memory_mib, slices, size, starts, instances, engines in (
        ("1g.5gb", 19, 4864, 1, 1, tuple(range(7)), 7, (1, 0, 0, 0, 0)),
        ("1g.5gb+me", 20, 4864, 1, 1, tuple(range(7)), 1, (1, 1, 0, 1, 1)),
        ("1g.10gb", 15, 9856, 1, 2, (0, 2, 4, 6), 4, (1, 1, 0, 0, 0)),
        ("2g.10gb", 14, 9856, 2, 2, (0, 2, 4), 3, (2, 1, 0, 0, 0)),
        ("3g.20gb", 9, 19968, 3, 4, (0, 4), 2, (3, 2, 0, 0, 0)),
        ("4g.20gb", 5, 19968, 4, 4, (0,), 1, (4, 2, 0, 0, 0)),
        ("7g.40gb", 0, 40192, 7, 8, (0,), 1, (7, 5, 0, 1, 1)),
    )
)
"""Of an A100 with 40 GB (NVIDIA MIG user guide), smallest first."""
A30_PROFILES = tuple(
    Profile(
        name=name,
        number=number,
        memory_mib=memory_mib,
        slices=slices,
        size=slices,
        starts=starts,
        instances=instances,
        multiprocessors=14 * slices,
        engines=engines,
    )
    for name, number, memory_mib, slices, starts, instances, engines in (
        ("1g.6gb", 14, 5952, 1, (0, 1, 2, 3), 4, (1, 0, 0, 0, 0)),
        ("1g.6gb+me", 21, 5952, 1, (0, 1, 2, 3), 1, (1, 1, 0, 1, 1)),
        ("2g.12gb", 5, 11968, 2, (0, 2), 2, (2, 2, 0, 0, 0)),
        ("2g.12gb+me", 6, 11968, 2, (0, 2), 1, (2, 2, 0, 1, 1)),
        ("4g.24gb", 0, 24125, 4, (0,), 1, (4, 4, 0, 1, 1)),
    )
)
"""Of an A30."""


def divide(
    gpu: GpuFacts,
    *instances: Instance,
    profiles: tuple[Profile, ...] = A100_PROFILES,
    enabled: bool = True,
    read_at: float = 0.0,
) -> GpuFacts:
    """Return a card that can be divided, in MIG mode unless said otherwise."""
    facts = MigFacts(
        enabled=enabled,
        profiles=profiles if enabled else (),
        instances=instances,
        read_at=read_at,
    )
    return replace(gpu, mig=facts)


@dataclass
class FakeInstances:
    """An `InstanceControl` that refuses what a driver refuses, with a driver's points.

    Attributes:
        profiles: Of every card.
        cards: Instances by UUID of the card.
        modes: Cards in MIG mode, by UUID; what is not here is.
        fault: Text of the error of every change, ``None`` for none.
        part_fault: The same, of making compute instances alone.
        late: What somebody else makes right before our next attempt.
        used: Numbers of instances that processes use.
        ended: Instances that were ended, in order.
    """

    profiles: tuple[Profile, ...] = A100_PROFILES
    cards: dict[str, tuple[Instance, ...]] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)
    fault: str | None = None
    part_fault: str | None = None
    late: Instance | None = None
    used: set[int] = field(default_factory=set)
    ended: list[tuple[str, int]] = field(default_factory=list)

    async def list_instances(self, uuid: str) -> tuple[Instance, ...]:
        """Return what exists."""
        return self.cards.get(uuid, ())

    async def create_instance(self, place: Place, profile: int) -> int:
        """Make an instance if there is room."""
        if self.fault is not None:
            raise InstanceRefusedError(self.fault)
        if (late := self.late) is not None:
            self.late = None
            self.put(place[0], late)
        uuid, start, size = place
        kind = next(each for each in self.profiles if each.number == profile)
        present = self.cards.get(uuid, ())
        if (
            (start, size) not in [(each, kind.size) for each in kind.starts]
            or any(overlap(start, size, each.start, each.size) for each in present)
            or sum(each.profile == profile for each in present) >= kind.instances
        ):
            raise InstanceRefusedError("Insufficient Resources")
        number = 8 - size + start
        report(Point("nvml", "nvmlDeviceCreateGpuInstanceWithPlacement"))
        made = Instance(number=number, profile=profile, start=start, size=size, slices=kind.slices)
        self.put(uuid, made)
        return number

    async def create_part(self, uuid: str, instance: int) -> Part:
        """Make the compute instance."""
        self._fail()
        if self.part_fault is not None:
            raise RetryError(self.part_fault)
        found = self._find(uuid, instance)
        kind = next(each for each in self.profiles if each.number == found.profile)
        part = Part(
            number=0,
            uuid=f"MIG-{instance:08x}-{uuid[4:17]}-5000-8000-000000000000",
            slices=kind.slices,
            multiprocessors=kind.multiprocessors,
        )
        report(Point("nvml", "nvmlGpuInstanceCreateComputeInstance"))
        self._replace(uuid, replace(found, parts=(part,)))
        return part

    async def destroy(self, uuid: str, instance: int) -> None:
        """End an instance unless it is used."""
        self._fail()
        if instance in self.used:
            raise RetryError("In use by another client")
        found = next((each for each in self.cards.get(uuid, ()) if each.number == instance), None)
        if found is None:
            return
        if found.parts:
            report(Point("nvml", "nvmlComputeInstanceDestroy"))
            self._replace(uuid, replace(found, parts=()))
        report(Point("nvml", "nvmlGpuInstanceDestroy"))
        self.cards[uuid] = tuple(
            each for each in self.cards.get(uuid, ()) if each.number != instance
        )
        self.ended.append((uuid, instance))

    async def enable(self, uuid: str) -> bool:
        """Switch the mode."""
        self._fail()
        report(Point("nvml", "nvmlDeviceSetMigMode"))
        self.modes[uuid] = True
        return True

    def put(self, uuid: str, instance: Instance) -> None:
        """Let an instance exist, whoever made it."""
        self.cards[uuid] = (*self.cards.get(uuid, ()), instance)

    def reboot(self) -> None:
        """Forget all instances, as a card does."""
        self.cards.clear()

    def _replace(self, uuid: str, changed: Instance) -> None:
        self.cards[uuid] = tuple(
            changed if each.number == changed.number else each for each in self.cards[uuid]
        )

    def _find(self, uuid: str, instance: int) -> Instance:
        return next(each for each in self.cards.get(uuid, ()) if each.number == instance)

    def _fail(self) -> None:
        if self.fault is not None:
            raise RetryError(self.fault)
