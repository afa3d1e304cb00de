"""Other vendors' devices: whose resources become claims on whose DRA driver.

One row is one kind of device. What a driver publishes differs from vendor to vendor, so every name
is a setting (docs/reference/vendors.md; rows to start from are in deploy/vendors.yaml).
"""

import re
from collections.abc import Collection, Iterator
from typing import Final, Literal

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.extendedresource import check_resource_name
from hami_dra.contract.quantity import MIB, parse_quantity

_SUBDOMAIN: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_CLASS: Final = re.compile(rf"(?=.{{1,253}}$){_SUBDOMAIN}")
_DRIVER: Final = re.compile(rf"(?=.{{1,63}}$){_SUBDOMAIN}")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUALIFIED: Final = re.compile(rf"((?=[^/]{{1,63}}/){_SUBDOMAIN}/)?[A-Za-z_][A-Za-z0-9_]{{0,31}}")
"""Attributes and capacities (resource.k8s.io/v1 validation)."""
_ANNOTATION: Final = re.compile(
    rf"((?=[^/]{{1,253}}/){_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
)
_MOST_FACTOR: Final = 2**31 - 1
_MOST_CARDS: Final = 32
_MOST_ROWS: Final = 64
_MOST_SELECTORS: Final = 8
_MOST_CEL_BYTES: Final = 10 << 10


class VendorAmount(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """Memory or compute of a device.

    Attributes:
        resource: Resource by which pods ask for it.
        capacity: What the driver calls it; "" if it publishes no such capacity, and then the
            resource is taken away from the pod with a warning.
        unit: What one of the resource is, as a quantity: bytes of memory, units of compute.
        default: As many of the resource as a container without it gets, or with 0 of it; ``None``
            to leave it to the driver, for which it usually is all that the device has.
    """

    resource: str
    capacity: str = ""
    unit: str = ""
    default: int | None = None


class VendorAnnotation(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """An annotation that lists devices, wanted or refused.

    Attributes:
        key: Its name.
        attribute: What the driver calls what is listed; without a domain, in the driver's own.
        match: Whether an entry is the whole value, or a ``part`` of it in any case.
        refused: Whether those devices are refused instead.
    """

    key: str
    attribute: str
    match: Literal["whole", "part"] = "whole"
    refused: bool = False


class Vendor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One row of ``vendors``.

    Attributes:
        name: For messages.
        device_class: The DeviceClass to claim.
        driver: The DRA driver; also the domain of attributes without one.
        count: Resource that counts devices.
        default_count: Devices of a container that names memory or cores only; 0 for none.
        memory: Memory of each device.
        cores: Compute of each device.
        slots: Capacity that every share takes one of, if the driver's default is not 1.
        distinct_attribute: Attribute that no two devices have in common, if the driver's devices
            can be shared; without it, one share could be given twice of one device.
        selectors: Conditions on devices in the Common Expression Language.
        annotations: How pods say which devices they want.
    """

    name: str
    device_class: str
    driver: str
    count: str
    default_count: int = 1
    memory: VendorAmount | None = None
    cores: VendorAmount | None = None
    slots: str = ""
    distinct_attribute: str = ""
    selectors: tuple[str, ...] = ()
    annotations: tuple[VendorAnnotation, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Resources of this row."""
        amounts = (amount.resource for amount in (self.memory, self.cores) if amount is not None)
        return (self.count, *amounts)

    @property
    def mib_per_unit(self) -> int:
        """What one of the memory's resource is, in MiB; a row that was checked has a whole one."""
        return int(parse_quantity((self.memory and self.memory.unit) or "1Mi") / MIB)


def check_vendors(vendors: Collection[Vendor], taken: Collection[str]) -> None:
    """Refuse rows that no claim can be made from.

    Args:
        vendors: All rows.
        taken: Resources that mean something else already.

    Raises:
        UserError: With the field.
    """
    if len(vendors) > _MOST_ROWS:
        raise UserError(f"has {len(vendors)} rows; the most is {_MOST_ROWS}", field="vendors")
    names: set[str] = set()
    used = set(taken)
    for index, vendor in enumerate(vendors):
        field = f"vendors[{index}]"
        if not _LABEL.fullmatch(vendor.name) or vendor.name in names:
            raise UserError(
                f"{vendor.name!r} must be a lower-case DNS label that no other row has",
                field=f"{field}.name",
            )
        names.add(vendor.name)
        for key in vendor.keys:
            check_resource_name(key, field=field)
            if key in used:
                raise UserError(f"{key!r} is the name of two resources", field=field)
            used.add(key)
        _check_row(vendor, field)


def _check_row(vendor: Vendor, field: str) -> None:
    for pattern, name, text in _list_names(vendor):
        if not pattern.fullmatch(text):
            raise UserError(f"{text!r} is no name that a claim can have", field=f"{field}.{name}")
    if not 0 <= vendor.default_count <= _MOST_CARDS:
        raise UserError(
            f"is {vendor.default_count}; write a number from 0 to {_MOST_CARDS}",
            field=f"{field}.defaultCount",
        )
    if vendor.memory is not None:
        _check_amount(vendor.memory, f"{field}.memory", MIB)
    if vendor.cores is not None:
        _check_amount(vendor.cores, f"{field}.cores", None)
    if len(vendor.selectors) > _MOST_SELECTORS:
        raise UserError(f"has more than {_MOST_SELECTORS}", field=f"{field}.selectors")
    for selector in vendor.selectors:
        if not selector.strip() or len(selector.encode()) > _MOST_CEL_BYTES:
            raise UserError(
                f"an expression has from 1 to {_MOST_CEL_BYTES} bytes", field=f"{field}.selectors"
            )


def _list_names(vendor: Vendor) -> Iterator[tuple[re.Pattern[str], str, str]]:
    """Yield what must match what, and where it stands; names that may be left out only if not."""
    yield _CLASS, "deviceClass", vendor.device_class
    yield _DRIVER, "driver", vendor.driver
    optional = [("slots", vendor.slots), ("distinctAttribute", vendor.distinct_attribute)]
    for name, amount in (("memory", vendor.memory), ("cores", vendor.cores)):
        if amount is not None:
            optional.append((f"{name}.capacity", amount.capacity))
    yield from ((_QUALIFIED, name, text) for name, text in optional if text)
    for index, annotation in enumerate(vendor.annotations):
        yield _ANNOTATION, f"annotations[{index}].key", annotation.key
        yield _QUALIFIED, f"annotations[{index}].attribute", annotation.attribute


def _check_amount(amount: VendorAmount, field: str, whole: int | None) -> None:
    if amount.unit:
        try:
            unit = parse_quantity(amount.unit)
        except ValueError as error:
            raise UserError(str(error), field=f"{field}.unit") from error
        if not 0 < unit <= _MOST_FACTOR * (whole or 1):
            raise UserError(f"is {amount.unit}; write a positive quantity", field=f"{field}.unit")
        if whole is not None and unit % whole:
            raise UserError(
                f"is {amount.unit}; write a whole number of MiB, such as 1Mi",
                field=f"{field}.unit",
            )
    if amount.default is not None and not 0 <= amount.default <= _MOST_FACTOR:
        raise UserError(
            f"is {amount.default}; write a number from 0 to {_MOST_FACTOR}",
            field=f"{field}.default",
        )
