"""Opaque configuration that a claim may carry for this driver.

It travels in ``spec.devices.config[].opaque.parameters`` and comes back in the allocation
(KEP-4381); the API server checks only its size, so the webhook and the node both decode it here.
"""

from typing import Any, Literal

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import CONFIG_API_VERSION, CONFIG_KIND


class ShareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a share's consumed capacity cannot say.

    Attributes:
        api_version: Always ``gpu.project-hami.io/v1alpha1``.
        kind: Always ``ShareConfig``.
        memory_limit_mib: MiB enforced on each card, when that is less than what the claim
            consumes (an exclusive card with a smaller limit). ``None``: the consumed memory.
    """

    api_version: Literal["gpu.project-hami.io/v1alpha1"] = msgspec.field(name="apiVersion")
    kind: Literal["ShareConfig"]
    memory_limit_mib: int | None = msgspec.field(name="memoryLimitMiB", default=None)


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
    return config


def encode_share_config(config: ShareConfig) -> dict[str, Any]:
    """Return the JSON form of a configuration, without fields left at their defaults."""
    encoded: dict[str, Any] = msgspec.to_builtins(config)
    return {key: value for key, value in encoded.items() if value is not None}
