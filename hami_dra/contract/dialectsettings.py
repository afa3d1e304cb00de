"""What an operator may set about dialects other than HAMi's."""

import re
from typing import Final, Literal

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.extendedresource import check_resource_name

ComputePolicy = Literal["fixed", "balance", "none"]
_DOMAIN: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_MOST_FACTOR: Final = 2**31 - 1
_MOST_REPLICAS: Final = 100


class GpushareSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``gpushare`` of the configuration.

    Attributes:
        memory_unit: What one of ``aliyun.com/gpu-mem`` is; the device plugin's --memory-unit.
    """

    memory_unit: Literal["GiB", "MiB"] = "GiB"


class VolcanoSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``volcano`` of the configuration, in the words of its device plugin's configuration.

    Attributes:
        gpu_memory_factor: What one of ``volcano.sh/vgpu-memory`` is, in MiB.
    """

    gpu_memory_factor: int = 1


class VgpuManagerSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``vgpuManager`` of the configuration.

    Attributes:
        domain: What stands before the slash of its resources and annotations (``--domain``).
        memory_factor: What one of ``vgpu-memory`` is, in MiB.
        compute_policy: How compute is limited in pods that do not say it.
    """

    domain: str = "nvidia.com"
    memory_factor: int = 1
    compute_policy: ComputePolicy = "fixed"


class NvidiaPluginSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``nvidiaPlugin`` of the configuration: what NVIDIA's device plugin was told in ``sharing``.

    Attributes:
        shared_resource_name: Resource for one replica of a card.
        replicas: Into how many parts a card is shared; 0 if that is not known, and then nobody
            gets one.
        sharing: Whether the parts take turns, or have a fixed share of compute each (MPS).
        fail_requests_greater_than_one: Refuse a container that asks for several parts; otherwise
            each is of another card.
    """

    shared_resource_name: str = "nvidia.com/gpu.shared"
    replicas: int = 0
    sharing: Literal["timeSlicing", "mps"] = "timeSlicing"
    fail_requests_greater_than_one: bool = True


def check_volcano(settings: VolcanoSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        UserError: With the field.
    """
    _check_range("volcano.gpuMemoryFactor", settings.gpu_memory_factor, 1, _MOST_FACTOR)


def check_vgpu_manager(settings: VgpuManagerSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        UserError: With the field.
    """
    if not _DOMAIN.fullmatch(settings.domain):
        raise UserError(
            f"{settings.domain!r} is no domain; write one such as nvidia.com",
            field="vgpuManager.domain",
        )
    _check_range("vgpuManager.memoryFactor", settings.memory_factor, 1, _MOST_FACTOR)


def check_nvidia_plugin(settings: NvidiaPluginSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        UserError: With the field.
    """
    check_resource_name(settings.shared_resource_name, field="nvidiaPlugin.sharedResourceName")
    _check_range("nvidiaPlugin.replicas", settings.replicas, 0, _MOST_REPLICAS)


def _check_range(field: str, number: int, lowest: int, highest: int) -> None:
    if not lowest <= number <= highest:
        raise UserError(f"is {number}; write a number from {lowest} to {highest}", field=field)
