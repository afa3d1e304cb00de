"""Other vendors' devices, by the operator's table (`contract.vendorsettings`).

A pod may have containers for several vendors, NVIDIA among them: all become requests of one claim,
and each request goes to the driver of its class. One container gets devices of one vendor, because
it refers to one request.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.quantity import parse_quantity
from hami_dra.contract.vendorsettings import Vendor, VendorAnnotation
from hami_dra.policy.dialects.cardlists import CardList, list_selectors
from hami_dra.policy.dialects.mib import read_mib
from hami_dra.policy.podview import Place, PodView, list_places
from hami_dra.policy.request import MOST_CARDS, PodRequest, Share, place_shares
from hami_dra.policy.selectors import quote, text_contains
from hami_dra.policy.target import Target
from hami_dra.policy.written import Number, Written, find_keys

_MOST_UNITS: Final = 2**31 - 1


def list_keys(vendors: Sequence[Vendor]) -> tuple[str, ...]:
    """Return the resources of all rows."""
    return tuple(key for vendor in vendors for key in vendor.keys)


def read_pod(pod: PodView, vendors: Sequence[Vendor]) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the resources.

    Raises:
        UserError: A number or an annotation that means nothing, or one container that asks for
            devices of two rows, by its path.
    """
    readers = [_Reader(vendor, pod.metadata.annotations or {}) for vendor in vendors]
    original: dict[str, dict[str, dict[str, Any]]] = {}
    keys: dict[str, None] = {}
    warnings: list[str] = []
    beside: dict[str, list[Share]] = {vendor.name: [] for vendor in vendors}
    before: dict[str, list[Share]] = {vendor.name: [] for vendor in vendors}
    for place in list_places(pod):
        found: dict[str, Share] = {}
        for reader in readers:
            written = find_keys(place, reader.vendor.keys)
            if not written.lists:
                continue
            keys.update(dict.fromkeys(reader.vendor.keys))
            name = place.container.name
            original[name] = _join_lists(original.get(name, {}), written.lists)
            share = reader.read_share(written, warnings)
            if share is not None:
                found[reader.vendor.name] = share
        if len(found) > 1:
            raise UserError(
                f"asks for devices of {' and '.join(found)}; a container gets "
                "devices of one kind, so use two containers or write a ResourceClaim",
                field=f"{place.path}.resources",
            )
        for name, share in found.items():
            (beside if place.runs_beside_others else before)[name].append(share)
    if not original:
        return None
    together: list[Share] = []
    alone: list[Share] = []
    uses: dict[str, str] = {}
    for name, shares in beside.items():
        # Row by row: two rows may name one DeviceClass, for devices that are not alike.
        placed, used = place_shares(shares, before[name])
        together += placed[: len(shares)]
        alone += placed[len(shares) :]
        uses |= used
    return PodRequest(
        shares=(*together, *alone),
        uses=uses,
        original=original,
        keys=tuple(keys),
        warnings=tuple(warnings),
    )


def join_requests(cards: PodRequest, devices: PodRequest) -> PodRequest:
    """Return what a pod asks for that wants our cards and other vendors' devices.

    Raises:
        UserError: One container wants both.
    """
    for name in cards.uses:
        if name in devices.uses:
            raise UserError(
                f"container {name!r} asks for cards and for another vendor's devices; use two "
                "containers or write a ResourceClaim",
                field="spec",
            )
    names = {**cards.original, **devices.original}
    return replace(
        cards,
        shares=(*cards.shares, *devices.shares),
        uses={**cards.uses, **devices.uses},
        original={
            name: _join_lists(cards.original.get(name, {}), devices.original.get(name, {}))
            for name in names
        },
        keys=(*cards.keys, *devices.keys),
        warnings=(*cards.warnings, *devices.warnings),
    )


def _join_lists(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in (*first, *second)}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one row's resources.

    Attributes:
        vendor: The row.
        annotations: Of the pod.
    """

    vendor: Vendor
    annotations: Mapping[str, str]

    def read_share(self, written: Written, warnings: list[str]) -> Share | None:
        """Return what a container wants, ``None`` for no device; `UserError` by the path."""
        vendor = self.vendor
        cards, mib = self._count_cards(written), self._read_memory(written)
        units, cores = self._read_cores(written), None
        if cards is None:
            asked = mib is not None or units is not None
            cards = vendor.default_count if asked else 0
        if cards == 0:
            return None
        if mib is None and vendor.memory is not None and vendor.memory.default:
            mib = vendor.memory.default * vendor.mib_per_unit
        if vendor.cores is not None:
            wanted = units if units is not None else vendor.cores.default
            cores = None if wanted is None else self._convert_cores(written.place, wanted)
        warnings.extend(self._warn_ignored(written))
        return Share(
            container=written.place.container.name,
            cards=cards,
            memory_mib=mib if vendor.memory is not None and vendor.memory.capacity else None,
            cores_percent=cores or 0,
            target=self._target(with_cores=cores is not None),
            selectors=(*vendor.selectors, *list_selectors(self.annotations, self._card_lists())),
        )

    def _count_cards(self, written: Written) -> int | None:
        number = written.read(self.vendor.count)
        if number is not None and number.value > MOST_CARDS:
            raise UserError(
                f"asks for {number.value} devices; a claim holds at most {MOST_CARDS}",
                field=number.field,
            )
        return None if number is None else number.value

    def _read_memory(self, written: Written) -> int | None:
        memory = self.vendor.memory
        if memory is None:
            return None
        number = read_mib(written, memory.resource, self.vendor.mib_per_unit)
        return None if number is None else number.value or None

    def _read_cores(self, written: Written) -> int | None:
        cores = self.vendor.cores
        number: Number | None = None if cores is None else written.read(cores.resource)
        return None if number is None else number.value or None

    def _convert_cores(self, place: Place, wanted: int) -> int:
        """Return the driver's units, rounded up so that nobody gets less than was asked for."""
        unit = parse_quantity((self.vendor.cores and self.vendor.cores.unit) or "1")
        units = math.ceil(wanted * unit)
        if units > _MOST_UNITS:
            raise UserError(
                f"asks for {units} units of compute; the most is {_MOST_UNITS}",
                field=f"{place.path}.resources",
            )
        return units

    def _warn_ignored(self, written: Written) -> Iterator[str]:
        for amount in (self.vendor.memory, self.vendor.cores):
            field = None if amount is None or amount.capacity else written.field(amount.resource)
            if field is not None:
                yield (
                    f"{field}: {self.vendor.driver} shares no such thing out; the container gets "
                    "all that the device has"
                )

    def _target(self, *, with_cores: bool) -> Target:
        vendor = self.vendor
        return Target(
            device_class=vendor.device_class,
            driver=vendor.driver,
            memory=vendor.memory.capacity if vendor.memory is not None else "",
            cores=vendor.cores.capacity if vendor.cores is not None and with_cores else "",
            slots=vendor.slots,
            uuid=vendor.distinct_attribute,
        )

    def _card_lists(self) -> list[CardList]:
        return [self._card_list(annotation) for annotation in self.vendor.annotations]

    def _card_list(self, annotation: VendorAnnotation) -> CardList:
        domain, _, attribute = annotation.attribute.rpartition("/")
        domain = domain or self.vendor.driver
        value = f"device.attributes[{quote(domain)}].{attribute}"

        def build(entries: Sequence[str]) -> str:
            listed = (
                text_contains(value, entries)
                if annotation.match == "part"
                else f"{value} in [{', '.join(map(quote, entries))}]"
            )
            # A device without the attribute is not one of those. `orValue` would do, too, but hides
            # from the API server how long the text can be, so that it refuses the expression.
            return f"has({value}) && {listed}"

        return CardList(annotation.key, build, refused=annotation.refused)
