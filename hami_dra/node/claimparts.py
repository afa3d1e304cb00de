"""The MIG instances of claims, made and ended in step with the ledger.

An instance is made only when the intent with its place is in the ledger, and the record leaves the
ledger only when the instance has ended: whatever ends this process, the next one knows whose an
instance is.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from hami_dra.contract.errors import HamiDraError
from hami_dra.gpu.mig import InstanceRefusedError
from hami_dra.node.ledger import ClaimRecord, Ledger
from hami_dra.node.partitions import Partitions, has_instances
from hami_dra.policy.binding import Binding
from hami_dra.policy.devices import CardCapacity, CardOffer, GpuFacts
from hami_dra.policy.migdevices import MigDevice, is_divided

Step = Callable[[str], None]


class ClaimParts:
    """What Prepare and Unprepare do beside files. The caller holds the claim's lock.

    Args:
        partitions: Knows and makes instances.
        ledger: Says whose they are.
        offers: Returns this node's cards by device name, as they are published now.
        step: Called after each durable step with its name (`MIG_PREPARE_STEPS`,
            `MIG_UNPREPARE_STEPS`).
    """

    def __init__(
        self,
        partitions: Partitions,
        ledger: Ledger,
        *,
        offers: Callable[[], Mapping[str, CardOffer]],
        step: Step,
    ) -> None:
        self._partitions = partitions
        self._ledger = ledger
        self._offers = offers
        self._step = step

    async def refresh(self) -> None:
        """Learn which instances are ours, where there are any.

        Raises:
            RetryError: The ledger does not answer.
        """
        if any(is_divided(offer.gpu) for offer in self._offers().values()):
            await self._partitions.refresh()

    def index(self) -> Mapping[str, MigDevice]:
        """Return the devices of divided cards by name."""
        gpus = [offer.gpu for offer in self._offers().values()]
        return self._partitions.index(gpus) if any(map(is_divided, gpus)) else {}

    async def plan(self, binding: Binding, known: ClaimRecord | None) -> Binding:
        """Take over what a claim has already, and make sure that the rest can be its own.

        What it had and has no more, since it was allocated anew, is ended: the ledger is about to
        forget it.

        Raises:
            RetryError: An instance of somebody else is at a place, or a process uses one that the
                claim has no more; or the driver does not answer.
        """
        held = known.binding if known is not None else None
        if held is not None and has_instances(held):
            await self._partitions.drop(held, binding)
        if not has_instances(binding):
            return binding
        await self._partitions.check_free(binding, held)
        return self._partitions.plan(binding, held)

    def check_whole(self, binding: Binding) -> None:
        """Make sure that no card of which a claim has a share is divided, or about to be.

        To be called when the intent is in the ledger; see `Partitions.check_whole`.

        Raises:
            RetryError: One is.
        """
        gpus: dict[str, GpuFacts] = {name: offer.gpu for name, offer in self._offers().items()}
        self._partitions.check_whole(binding, gpus)

    async def create(self, record: ClaimRecord, known: ClaimRecord | None) -> ClaimRecord:
        """Make the instances of a claim whose intent is in the ledger, and record them there.

        Raises:
            RetryError: One cannot be made, or a card has just been switched to MIG mode.
        """
        held = known.binding if known is not None else None
        try:
            self.check_whole(record.binding)
        except HamiDraError:
            if known is None:
                await self._ledger.remove(record.binding.claim_uid)
            raise
        self._partitions.own(record.binding)
        try:
            binding = await self._partitions.create(record.binding, held, self._step)
            made = replace(record, binding=binding)
            if made != record:
                await self._ledger.note(made)
                self._step("ledger-instances")
        except InstanceRefusedError:
            if known is None:
                await self._leave(record.binding)
            raise
        except HamiDraError:
            if known is None:
                await self._withdraw(record.binding)
            raise
        return made

    async def destroy(self, binding: Binding) -> None:
        """End the instances of a claim. Idempotent.

        Raises:
            RetryError: A process still uses one, or the driver does not answer.
        """
        if has_instances(binding):
            await self._partitions.destroy(binding)
            self._step("unprepare-mig")

    def disown(self, binding: Binding) -> None:
        """Take note that a claim has left the ledger."""
        self._partitions.disown(binding)

    async def _withdraw(self, binding: Binding) -> None:
        """Leave no claim to a place where nothing of ours is: somebody else may take it."""
        try:
            await self._partitions.destroy(binding)
        except HamiDraError:
            return  # the intent stays, and with it whose the instance is
        await self._leave(binding)

    async def _leave(self, binding: Binding) -> None:
        await self._ledger.remove(binding.claim_uid)
        self._partitions.disown(binding)


def list_capacities(
    binding: Binding, offers: Mapping[str, CardOffer], parts: Mapping[str, MigDevice]
) -> dict[str, CardCapacity]:
    """Return what there is of each device of a claim."""
    return {
        device.device: CardCapacity(
            memory_mib=parts[device.device].profile.memory_mib,
            cores=parts[device.device].cores,
            slots=1,
        )
        if device.device in parts
        else offers[device.device].capacity
        for device in binding.devices
    }
