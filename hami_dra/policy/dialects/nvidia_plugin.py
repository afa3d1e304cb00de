"""NVIDIA's device plugin: ``nvidia.com/gpu.shared``, ``mig-<profile>``; nos: ``gpu-<n>gb``.

Meaning: NVIDIA/k8s-device-plugin (time-slicing and MPS with ``renameByDefault``, MIG strategy
``mixed``; a profile's ``+`` is a ``.`` in the resource's name) and nebuly-ai/nos (MPS slices).
Plain ``nvidia.com/gpu`` is HAMi's dialect, where it means the same whole card. What a replica is,
only the operator can say (`NvidiaPluginSettings`; docs/decisions/0014-vendors.md).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from hami_dra.contract.dialectsettings import NvidiaPluginSettings
from hami_dra.contract.errors import UserError
from hami_dra.contract.names import RESOURCE_GPU
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.dialects.wholecards import refuse_whole_cards
from hami_dra.policy.podview import Place, PodView, list_places
from hami_dra.policy.request import MOST_CARDS, Enforcement, PodRequest, Share, place_shares
from hami_dra.policy.selectors import profile_is
from hami_dra.policy.target import MIG_DEVICES
from hami_dra.policy.written import Number, find_keys

_MIG_PREFIX: Final = "nvidia.com/mig-"
_SLICE_PREFIX: Final = "nvidia.com/gpu-"
PREFIXES: Final = (_MIG_PREFIX, _SLICE_PREFIX)
_PROFILE: Final = re.compile(
    r"(?:[1-9][0-9]?c\.)?[1-9][0-9]?g\.[1-9][0-9]{0,3}gb(?:[.-](?!shared\b)[a-z]{1,8}){0,4}"
)
_SLICE: Final = re.compile(r"(?P<gib>[1-9][0-9]{0,3})gb")
_MIB_PER_GIB: Final = 1024
_WHOLE_PERCENT: Final = 100


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources that this dialect reads, besides those that begin with `PREFIXES`."""
    return (admission.nvidia_plugin.shared_resource_name,)


def read_pod(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for; ``None`` if it has none of the keys.

    Raises:
        UserError: A name or a number that means nothing, by its path.
    """
    settings = admission.nvidia_plugin
    original: dict[str, dict[str, dict[str, Any]]] = {}
    keys: set[str] = set()
    warnings: list[str] = []
    beside: list[Share] = []
    before: list[Share] = []
    for place in list_places(pod):
        written = find_keys(place, sorted(set(_find_names(place, settings))))
        if not written.lists:
            continue
        original[place.container.name] = written.lists
        said = sorted({key for values in written.lists.values() for key in values})
        keys.update(said)
        shares = [
            _read_share(place, key, number, settings, warnings)
            for key in said
            if (number := written.read(key)) is not None and number.value > 0
        ]
        if len(shares) > 1:
            raise UserError(
                f"asks for {' and '.join(said)}; a container gets one kind of card, so use "
                "two containers or write a ResourceClaim",
                field=f"{place.path}.resources",
            )
        (beside if place.runs_beside_others else before).extend(shares)
    if not original:
        return None
    if settings.shared_resource_name != RESOURCE_GPU:
        refuse_whole_cards(pod, admission, min(keys))
    together, uses = place_shares(beside, before)
    return PodRequest(
        shares=together,
        uses=uses,
        original=original,
        keys=tuple(sorted(keys)),
        warnings=tuple(warnings),
    )


def _find_names(place: Place, settings: NvidiaPluginSettings) -> Iterator[str]:
    resources = place.container.resources
    if resources is None:
        return
    for values in (resources.limits, resources.requests):
        for key in values or ():
            # gpu-<anything else> belongs to somebody else.
            if (
                key == settings.shared_resource_name
                or key.startswith(_MIG_PREFIX)
                or (key.startswith(_SLICE_PREFIX) and _SLICE.fullmatch(key[len(_SLICE_PREFIX) :]))
            ):
                yield key


def _read_share(
    place: Place, key: str, number: Number, settings: NvidiaPluginSettings, warnings: list[str]
) -> Share:
    if number.value > MOST_CARDS:
        raise UserError(
            f"asks for {number.value} cards; a claim holds at most {MOST_CARDS}", field=number.field
        )
    name = place.container.name
    if key.startswith(_MIG_PREFIX):
        profile = key.removeprefix(_MIG_PREFIX)
        if not _PROFILE.fullmatch(profile):
            raise UserError(
                f"{profile[:63]!r} is no MIG profile such as 1g.5gb, 1c.3g.20gb or 1g.5gb.me, and "
                "MIG devices are not shared further",
                field=number.field,
            )
        selectors = (profile_is(profile),)
        return Share(container=name, cards=number.value, target=MIG_DEVICES, selectors=selectors)
    if number.value > 1 and settings.fail_requests_greater_than_one:
        raise UserError(
            f"is {number.value}, but several parts of a card are not more of it; write 1 "
            "(nvidiaPlugin.failRequestsGreaterThanOne of the configuration)",
            field=number.field,
        )
    if key != settings.shared_resource_name:
        gib = int(key.removeprefix(_SLICE_PREFIX).removesuffix("gb"))
        return Share(container=name, cards=number.value, memory_mib=gib * _MIB_PER_GIB)
    return _read_replica(name, number, settings, warnings)


def _read_replica(
    name: str, number: Number, settings: NvidiaPluginSettings, warnings: list[str]
) -> Share:
    if not settings.replicas:
        raise UserError(
            "is one of how many parts of a card? The operator of the cluster has to set "
            "nvidiaPlugin.replicas",
            field=number.field,
        )
    alone = settings.replicas == 1
    mps = settings.sharing == "mps"
    if not (alone or mps):
        warnings.append(
            f"{number.field}: the container gets 1/{settings.replicas} of the card's memory and no "
            "more; without this driver it was not limited"
        )
    return Share(
        container=name,
        cards=number.value,
        memory_percent=None if alone else Fraction(_WHOLE_PERCENT, settings.replicas),
        cores_percent=_WHOLE_PERCENT // settings.replicas if mps else 0,
        exclusive=alone and mps,
        enforcement=Enforcement(core_policy=None if alone or not mps else "force"),
    )
