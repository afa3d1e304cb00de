"""Whose devices a share is of, and what their driver calls things."""

from dataclasses import dataclass
from typing import Final

from hami_dra.contract.names import (
    ATTR_UUID,
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    CAPACITY_SLOTS,
    DEVICE_CLASS,
    DEVICE_CLASS_MIG,
    DRIVER_NAME,
)


@dataclass(frozen=True, slots=True)
class Target:
    """A DeviceClass, with the names that a claim on it may use.

    A capacity must be spelled as the driver publishes it, or no device ever fits; so what a driver
    does not publish is "" here, and no claim asks for it.

    Attributes:
        device_class: Name of the DeviceClass.
        driver: Name of the DRA driver; also the domain of its attributes.
        memory: Capacity for memory.
        cores: Capacity for compute, in which a share's ``cores_percent`` is counted whatever the
            driver's unit is.
        slots: Capacity that every share takes one of.
        uuid: Attribute that no two cards have in common; without a domain, in the driver's own.
        takes_config: Whether the driver reads our `ShareConfig`.
    """

    device_class: str
    driver: str
    memory: str = ""
    cores: str = ""
    slots: str = ""
    uuid: str = ""
    takes_config: bool = False

    @property
    def qualified_uuid(self) -> str:
        """``uuid`` with its domain, for constraints."""
        return self.uuid if "/" in self.uuid else f"{self.driver}/{self.uuid}"


OUR_CARDS: Final = Target(
    device_class=DEVICE_CLASS,
    driver=DRIVER_NAME,
    memory=CAPACITY_MEMORY,
    cores=CAPACITY_CORES,
    slots=CAPACITY_SLOTS,
    uuid=ATTR_UUID,
    takes_config=True,
)

MIG_DEVICES: Final = Target(
    device_class=DEVICE_CLASS_MIG, driver=DRIVER_NAME, memory=CAPACITY_MEMORY, uuid=ATTR_UUID
)
"""Parts that the card itself keeps apart: taken whole, and not held by our library.

Memory that is asked for is the least that a part must have."""
