"""Ways in which people write a fractional GPU, one small module each.

Every dialect turns a `PodView` into a `PodRequest`; nothing above it knows who spoke which. Those
that are switched on are tried together, because a pod that speaks two means two things.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import AdmissionSettings, DialectName
from hami_dra.policy.dialects import (
    gpushare,
    hami,
    kai,
    koordinator,
    nvidia_plugin,
    vendors,
    vgpu_manager,
    volcano,
)
from hami_dra.policy.dialects.control import check_control
from hami_dra.policy.podview import PodView
from hami_dra.policy.request import PodRequest


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one dialect is recognised and read.

    Attributes:
        list_keys: Resources whose presence in a container means that a pod speaks it.
        read_pod: Reads a pod; ``None`` if it does not speak it.
        annotations: Keys whose presence on a pod means the same.
        prefixes: How resources begin whose presence means the same, and whose names have an end
            that only the dialect can judge.
    """

    list_keys: Callable[[AdmissionSettings], tuple[str, ...]]
    read_pod: Callable[[PodView, AdmissionSettings], PodRequest | None]
    annotations: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


_DIALECTS: Final[Mapping[DialectName, _Dialect]] = {
    "hami": _Dialect(hami.list_keys, hami.read_pod),
    "volcano": _Dialect(volcano.list_keys, volcano.read_pod),
    "kai": _Dialect(kai.list_keys, kai.read_pod, kai.ANNOTATIONS),
    "koordinator": _Dialect(koordinator.list_keys, koordinator.read_pod),
    "gpushare": _Dialect(gpushare.list_keys, gpushare.read_pod),
    "vgpu-manager": _Dialect(vgpu_manager.list_keys, vgpu_manager.read_pod),
    "nvidia": _Dialect(
        nvidia_plugin.list_keys, nvidia_plugin.read_pod, prefixes=nvidia_plugin.PREFIXES
    ),
}


def list_keys(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the resources of all dialects that are switched on, and of other vendors."""
    words = (key for name in admission.dialects for key in _DIALECTS[name].list_keys(admission))
    return (*words, *vendors.list_keys(admission.vendors))


def list_annotations(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return the annotations by which the dialects that are switched on ask for cards."""
    return tuple(key for name in admission.dialects for key in _DIALECTS[name].annotations)


def list_prefixes(admission: AdmissionSettings) -> tuple[str, ...]:
    """Return how further resources of the dialects that are switched on begin."""
    return tuple(key for name in admission.dialects for key in _DIALECTS[name].prefixes)


def read_request(pod: PodView, admission: AdmissionSettings) -> PodRequest | None:
    """Read what a pod asks for, in whichever dialect; ``None`` if in none.

    Raises:
        UserError: It speaks two dialects, or one of them wrongly, or wants what the operator does
            not allow.
    """
    found = {
        name: request
        for name in admission.dialects
        if (request := _DIALECTS[name].read_pod(pod, admission)) is not None
    }
    if len(found) > 1:
        said = [f"{name} ({_find_key(request)})" for name, request in found.items()]
        raise UserError(
            f"the pod asks for GPUs in the words of {' and '.join(said)}; write it in one of them",
            field="spec",
        )
    request = next(iter(found.values()), None)
    devices = vendors.read_pod(pod, admission.vendors) if admission.vendors else None
    if devices is not None:
        request = devices if request is None else vendors.join_requests(request, devices)
    if request is not None and not admission.allow_disable_control:
        check_control(pod, request)
    return request


def _find_key(request: PodRequest) -> str:
    container, lists = next(iter(request.original.items()))
    key = next(key for values in lists.values() for key in values)
    return f"{key} in container {container!r}"
