"""What an operator may set about the meaning of GPU keys, in HAMi's words.

The names below ``nvidia`` are those of HAMi's device configuration (device-config.yaml), so that
a cluster that renamed its resources or set defaults keeps them. Keys that concern nodes or other
vendors are refused like any unknown one: a setting that has no effect is worse than an error.
"""

from typing import Any, Final, Literal

import msgspec

from hami_dra.contract.claimconfig import CorePolicy
from hami_dra.contract.dialectsettings import (
    GpushareSettings,
    NvidiaPluginSettings,
    VgpuManagerSettings,
    VolcanoSettings,
    check_nvidia_plugin,
    check_vgpu_manager,
    check_volcano,
)
from hami_dra.contract.errors import UserError
from hami_dra.contract.extendedresource import check_resource_name
from hami_dra.contract.names import (
    RESOURCE_CORES,
    RESOURCE_GPU,
    RESOURCE_MEMORY,
    RESOURCE_MEMORY_PERCENTAGE,
    RESOURCE_PRIORITY,
)
from hami_dra.contract.vendorsettings import Vendor, check_vendors

DialectName = Literal["hami", "volcano", "kai", "koordinator", "gpushare", "vgpu-manager", "nvidia"]
_MOST_MIB: Final = 2**31 - 1
_WHOLE_PERCENT: Final = 100


class NvidiaSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``nvidia`` of the configuration.

    Attributes:
        resource_count_name: Resource that counts cards.
        resource_memory_name: Resource for MiB of each card, times ``memory_factor``.
        resource_memory_percentage_name: Resource for percent of each card's memory.
        resource_core_name: Resource for percent of each card's multiprocessors.
        resource_priority_name: Resource for the task priority.
        overwrite_env: Tell containers without a share, by NVIDIA_VISIBLE_DEVICES=none, that
            they get no card from a vendor's runtime.
        default_memory: MiB of a share that says nothing about memory; 0 for all of the card.
        default_cores: Percent of a share that says nothing about cores and is not exclusive.
        default_gpu_num: Cards of a container that names other keys only; 0 to leave it alone.
        memory_factor: What one of ``resource_memory_name`` is, in MiB.
        gpu_core_policy: When compute is throttled in containers that do not say it.
    """

    resource_count_name: str = RESOURCE_GPU
    resource_memory_name: str = RESOURCE_MEMORY
    resource_memory_percentage_name: str = RESOURCE_MEMORY_PERCENTAGE
    resource_core_name: str = RESOURCE_CORES
    resource_priority_name: str = RESOURCE_PRIORITY
    overwrite_env: bool = False
    default_memory: int = 0
    default_cores: int = 0
    default_gpu_num: int = msgspec.field(name="defaultGPUNum", default=1)
    memory_factor: int = 1
    gpu_core_policy: CorePolicy = "default"

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the five resources."""
        return (
            self.resource_count_name,
            self.resource_memory_name,
            self.resource_memory_percentage_name,
            self.resource_core_name,
            self.resource_priority_name,
        )


class SchedulerPolicy(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """``defaultSchedulerPolicy`` of HAMi's chart, for pods without the annotations.

    Attributes:
        node_scheduler_policy: Prefer nodes with many shares, or few; "" for neither.
        gpu_scheduler_policy: Comma list of card policies, see `policy.dialects.hami_annotations`;
            "" for the scheduler's own order, which fills one card after the other.
    """

    node_scheduler_policy: Literal["", "binpack", "spread"] = ""
    gpu_scheduler_policy: str = ""


class AdmissionSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"
):
    """The configuration file of admission.

    Attributes:
        dialects: Whose words for fractional GPUs are understood.
        nvidia: What HAMi's words mean.
        default_scheduler_policy: Where pods go that do not say it.
        replace_schedulers: Names of schedulers whose pods go to the stock one, which needs none of
            theirs to allocate a claim.
        excluded_namespaces: Namespaces whose pods are never rewritten, so that nothing that the
            cluster itself needs can ever wait for the webhook.
        native_whole_cards: Leave pods that ask for whole cards and nothing else to the scheduler
            (Kubernetes 1.36). Their claims are not made by admission, and not seen by it.
        allow_disable_control: Whether a pod may lift the limits of its own share.
        volcano: What Volcano's words mean.
        gpushare: What gpushare's words mean.
        vgpu_manager: What vgpu-manager's words mean.
        nvidia_plugin: What the words of NVIDIA's device plugin mean.
        vendors: Other vendors' devices, whatever the dialects.
    """

    dialects: tuple[DialectName, ...] = ("hami",)
    nvidia: NvidiaSettings = NvidiaSettings()
    default_scheduler_policy: SchedulerPolicy = SchedulerPolicy()
    replace_schedulers: tuple[str, ...] = ("hami-scheduler",)
    excluded_namespaces: tuple[str, ...] = ("kube-system",)
    native_whole_cards: bool = False
    allow_disable_control: bool = True
    volcano: VolcanoSettings = VolcanoSettings()
    gpushare: GpushareSettings = GpushareSettings()
    vgpu_manager: VgpuManagerSettings = VgpuManagerSettings()
    nvidia_plugin: NvidiaPluginSettings = NvidiaPluginSettings()
    vendors: tuple[Vendor, ...] = ()


DEFAULT_SETTINGS: Final = AdmissionSettings()

_GPU_POLICIES: Final = ("", "binpack", "spread", "topology-aware", "mutex", "numa")
_RANGES: Final = (
    ("defaultMemory", "default_memory", 0, _MOST_MIB),
    ("defaultCores", "default_cores", 0, _WHOLE_PERCENT),
    ("defaultGPUNum", "default_gpu_num", 0, 32),
    ("memoryFactor", "memory_factor", 1, _MOST_MIB),
)


def decode_settings(value: Any) -> AdmissionSettings:
    """Decode the parsed content of a configuration file strictly; ``None`` is an empty one.

    Raises:
        UserError: An unknown key, a wrong type or an impossible value, by name.
    """
    try:
        settings = msgspec.convert({} if value is None else value, AdmissionSettings)
    except msgspec.ValidationError as error:
        raise UserError(f"is not an admission configuration: {error}") from error
    nvidia = settings.nvidia
    if not settings.dialects or len(set(settings.dialects)) < len(settings.dialects):
        raise UserError("names no dialect, or one of them twice", field="dialects")
    for policy in settings.default_scheduler_policy.gpu_scheduler_policy.split(","):
        if policy.strip() not in _GPU_POLICIES:
            raise UserError(
                f"{policy.strip()!r} is not one of {', '.join(filter(None, _GPU_POLICIES))}",
                field="defaultSchedulerPolicy.gpuSchedulerPolicy",
            )
    for name, attribute, lowest, highest in _RANGES:
        number = getattr(nvidia, attribute)
        if not lowest <= number <= highest:
            raise UserError(
                f"is {number}; write a number from {lowest} to {highest}", field=f"nvidia.{name}"
            )
    for key in nvidia.keys:
        check_resource_name(key, field="nvidia")
        if nvidia.keys.count(key) > 1:
            raise UserError(f"{key!r} is the name of two resources", field="nvidia")
    check_volcano(settings.volcano)
    check_vgpu_manager(settings.vgpu_manager)
    check_nvidia_plugin(settings.nvidia_plugin)
    _check_native(settings)
    check_vendors(settings.vendors, taken=nvidia.keys)
    return settings


def _check_native(settings: AdmissionSettings) -> None:
    """Refuse what pods that never come to us could not get."""
    if not settings.native_whole_cards:
        return
    policy = settings.default_scheduler_policy
    lost = {
        "nvidia.defaultMemory": settings.nvidia.default_memory,
        "defaultSchedulerPolicy": policy.node_scheduler_policy or policy.gpu_scheduler_policy,
        "dialects": "hami" not in settings.dialects,
    }
    for field, value in lost.items():
        if value:
            raise UserError(
                f"with nativeWholeCards, {field} has no effect on pods that ask for whole cards "
                "only; set one of them"
                if field != "dialects"
                else 'lacks "hami", whose words nativeWholeCards is about',
                field=field,
            )
