"""A card in parts, whose kernel module shows the rights to its instances in a directory."""

import shutil
from pathlib import Path
from typing import Any, Final

from hami_dra.policy.devices import GpuFacts, name_device
from hami_dra.policy.mig import Instance, Part
from hami_dra.policy.migdevices import name_placement
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import FakeInstances, divide
from tests.unit.node.rig import Rig, make_share

CARD: Final = make_gpu(0)
OTHERS: Final = Instance(
    number=1,
    profile=9,
    start=0,
    size=4,
    slices=3,
    parts=(Part(number=0, uuid="MIG-others", slices=3, multiprocessors=42),),
)
"""What somebody else made."""


class DividedCard(FakeInstances):
    """One card that can be divided.

    Attributes:
        gpu: The card, undivided.
        procfs: The directory.
        after: What somebody else makes when we have made an instance.
    """

    def __init__(self, base: Path, gpu: GpuFacts = CARD) -> None:
        super().__init__()
        self.gpu = gpu
        self.after: list[Instance] = []
        self.procfs = base / "proc"
        self.procfs.mkdir(exist_ok=True)
        (self.procfs / "devices").write_text("Character devices:\n237 nvidia-caps\n")

    async def create_part(self, uuid: str, instance: int) -> Part:
        """Make it and show both."""
        part = await super().create_part(uuid, instance)
        below = self._show(instance)
        (below / "ci0").mkdir(parents=True, exist_ok=True)
        (below / "access").write_text(f"DeviceFileMinor: {10 * instance}\nDeviceFileMode: 292\n")
        (below / "ci0/access").write_text(f"DeviceFileMinor: {10 * instance + 1}\n")
        self.late = self.after.pop() if self.after else None
        return part

    async def destroy(self, uuid: str, instance: int) -> None:
        """End it and show it no more."""
        await super().destroy(uuid, instance)
        shutil.rmtree(self._show(instance), ignore_errors=True)

    @property
    def places(self) -> list[tuple[int, int]]:
        """First slice and size of what exists."""
        return sorted((each.start, each.size) for each in self.cards.get(self.gpu.uuid, ()))

    def show_to(self, rig: Rig, *, read_at: float = 1e12) -> None:
        """Let the node look at the card."""
        present = self.cards.get(self.gpu.uuid, ())
        rig.gpus[name_device(self.gpu.uuid)] = divide(self.gpu, *present, read_at=read_at)

    def _show(self, instance: int) -> Path:
        return self.procfs / f"driver/nvidia/capabilities/gpu{self.gpu.minor}/mig/gi{instance}"


def make_part(
    profile: str = "3g.20gb", start: int = 4, *, gpu: GpuFacts = CARD, **changes: Any
) -> dict[str, Any]:
    """Return one result of an allocation: a placement."""
    device = name_placement(gpu.uuid, profile, start)
    return make_share(shareID=None, consumedCapacity=None, device=device, **changes)
