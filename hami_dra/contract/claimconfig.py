"""Opaque configuration that a claim may carry for this driver.

It travels in ``spec.devices.config[].opaque.parameters`` and comes back in the allocation
(KEP-4381); the API server checks only its size, so the webhook and the node both decode it here.
"""

from typing import Any, Final, Literal

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import CONFIG_API_VERSION, CONFIG_KIND

CorePolicy = Literal["default", "force", "disable"]
ComputeBackend = Literal["hooks", "mps"]
_MOST_PRIORITY: Final = 2**31 - 1
_WHOLE_PERCENT: Final = 100
_LONGEST_BURST_MS: Final = 1000
"""libvgpu takes no more: a share that saved up for longer would stop its neighbours for as long."""


class ShareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a share's consumed capacity cannot say.

    Attributes:
        api_version: Always ``gpu.project-hami.io/v1alpha1``.
        kind: Always ``ShareConfig``.
        memory_limit_mib: MiB enforced on each card, when that is less than what the claim
            consumes (an exclusive card with a smaller limit). ``None``: the consumed memory.
        memory_limit_percent: The same in percent of each card's memory, for claims that are
            written before their card is known. Excludes ``memory_limit_mib``.
        priority: HAMi's task priority, 0 before 1 before 2; ``None``: libvgpu's default, 1.
        core_policy: When compute is throttled: ``force`` always, ``disable`` never, ``default``
            while others work on the card. ``None``: libvgpu's default.
        core_ceiling_percent: What compute is raised to while nobody else works on the card, under
            ``force`` as well; ``None``: the whole card, and under ``force`` not at all.
        core_burst_ms: How much time of an unused share can be saved up; ``None``: 10.
        disable_control: Hand out the share, but hold nobody to it (CUDA_DISABLE_CONTROL).
        oversubscription: What the card has no room for may lie in the host's memory, up to the
            limit (CUDA_OVERSUBSCRIBE).
        compute_backend: Who holds compute: libvgpu in time, or NVIDIA's MPS in space. ``None``:
            what the node does by default.
    """

    api_version: Literal["gpu.project-hami.io/v1alpha1"] = msgspec.field(name="apiVersion")
    kind: Literal["ShareConfig"]
    memory_limit_mib: int | None = msgspec.field(name="memoryLimitMiB", default=None)
    memory_limit_percent: int | None = msgspec.field(name="memoryLimitPercent", default=None)
    priority: int | None = None
    core_policy: CorePolicy | None = msgspec.field(name="corePolicy", default=None)
    core_ceiling_percent: int | None = msgspec.field(name="coreCeilingPercent", default=None)
    core_burst_ms: int | None = msgspec.field(name="coreBurstMs", default=None)
    disable_control: bool = msgspec.field(name="disableControl", default=False)
    oversubscription: bool = False
    compute_backend: ComputeBackend | None = msgspec.field(name="computeBackend", default=None)


def decode_share_config(parameters: object, *, field: str) -> ShareConfig:
    """Decode opaque parameters strictly.

    Args:
        parameters: The decoded JSON value of ``opaque.parameters``.
        field: JSON path of ``parameters`` in its object, for the message.

    Raises:
        UserError: An unknown or missing field, a wrong type or an impossible value, by name.
    """
    try:
        config = msgspec.convert(parameters, ShareConfig)
    except msgspec.ValidationError as error:
        raise UserError(
            f"is not a {CONFIG_KIND} of {CONFIG_API_VERSION}: {error}", field=field
        ) from error
    if config.memory_limit_mib is not None and config.memory_limit_mib <= 0:
        raise UserError(
            f"must be at least 1 MiB, got {config.memory_limit_mib}; leave it out to enforce "
            "what the claim consumes",
            field=f"{field}.memoryLimitMiB",
        )
    if config.memory_limit_percent is not None:
        _check_percent(config.memory_limit_percent, config.memory_limit_mib, field)
    if config.priority is not None and not 0 <= config.priority <= _MOST_PRIORITY:
        raise UserError(
            f"must be from 0 (first) to {_MOST_PRIORITY}, got {config.priority}",
            field=f"{field}.priority",
        )
    _check_compute(config, field)
    return config


def _check_compute(config: ShareConfig, field: str) -> None:
    ceiling, burst = config.core_ceiling_percent, config.core_burst_ms
    if ceiling is not None and not 0 < ceiling <= _WHOLE_PERCENT:
        raise UserError(
            f"must be from 1 to {_WHOLE_PERCENT}, got {ceiling}",
            field=f"{field}.coreCeilingPercent",
        )
    if ceiling is not None and config.core_policy == "disable":
        raise UserError(
            "raises a limit that corePolicy: disable takes away; write one of them",
            field=f"{field}.coreCeilingPercent",
        )
    if burst is not None and not 0 < burst <= _LONGEST_BURST_MS:
        raise UserError(
            f"must be from 1 to {_LONGEST_BURST_MS}, got {burst}", field=f"{field}.coreBurstMs"
        )


def _check_percent(percent: int, limit_mib: int | None, field: str) -> None:
    if not 0 < percent <= _WHOLE_PERCENT:
        raise UserError(
            f"must be from 1 to {_WHOLE_PERCENT}, got {percent}",
            field=f"{field}.memoryLimitPercent",
        )
    if limit_mib is not None:
        raise UserError(
            "says the limit a second time beside memoryLimitMiB; write one of them",
            field=f"{field}.memoryLimitPercent",
        )


def encode_share_config(config: ShareConfig) -> dict[str, Any]:
    """Return the JSON form of a configuration, without fields left at their defaults."""
    encoded: dict[str, Any] = msgspec.to_builtins(config)
    return {
        key: value for key, value in encoded.items() if value is not None and value is not False
    }
