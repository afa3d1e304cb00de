"""Environment variables with which people steer HAMi's library, as far as the node must know them.

Meaning: HAMi v2.10 ``pkg/device-plugin/nvidiadevice`` (Allocate) and HAMi-core. The grant, not the
environment, tells our library what to hold, so what is written here travels in the claim.
"""

from typing import Final

from hami_dra.contract.claimconfig import CorePolicy
from hami_dra.policy.podview import EnvVar, Place
from hami_dra.policy.truth import parse_bool

ENV_CORE_POLICY: Final = "GPU_CORE_UTILIZATION_POLICY"
ENV_DISABLE_CONTROL: Final = "CUDA_DISABLE_CONTROL"
ENV_OVERSUBSCRIBE: Final = "CUDA_OVERSUBSCRIBE"
_CORE_POLICIES: Final[dict[str, CorePolicy]] = {
    "default": "default",
    "DEFAULT": "default",
    "force": "force",
    "FORCE": "force",
    "disable": "disable",
    "DISABLE": "disable",
}


def read_core_policy(place: Place, usual: CorePolicy, warnings: list[str]) -> CorePolicy | None:
    """Return when compute is throttled in a container, ``None`` for the library's default.

    Args:
        place: The container.
        usual: What holds for containers that do not say it.
        warnings: Takes what has no effect.
    """
    text = _read(place, ENV_CORE_POLICY, warnings)
    policy = usual if text is None else _CORE_POLICIES.get(text)
    if policy is None:
        warnings.append(
            f"{place.path}.env[{ENV_CORE_POLICY}]: {str(text)[:63]!r} is no policy (they are "
            f"default, force and disable); taken as {usual!r}"
        )
        policy = usual
    return None if policy == "default" else policy


def read_control(place: Place, warnings: list[str], name: str = ENV_DISABLE_CONTROL) -> bool:
    """Return whether a container is held to its limits.

    Args:
        place: The container.
        warnings: Takes what has no effect, or one that people should know.
        name: The variable that lifts them.
    """
    text = _read(place, name, warnings)
    disabled = False if text is None else parse_bool(text)
    where = f"{place.path}.env[{name}]"
    if disabled is None:
        warnings.append(f"{where}: {str(text)[:63]!r} is neither true nor false; has no effect")
    elif disabled:
        warnings.append(
            f"{where}: the container shares its card, but is not held to its limits; remove the "
            "variable, or ask for the whole card"
        )
    return not disabled


def read_oversubscription(place: Place, warnings: list[str]) -> bool:
    """Return whether memory that a card has no room for may be the host's.

    Args:
        place: The container.
        warnings: Takes what has no effect.
    """
    text = _read(place, ENV_OVERSUBSCRIBE, warnings)
    wanted = False if text is None else parse_bool(text)
    if wanted is None:
        warnings.append(
            f"{place.path}.env[{ENV_OVERSUBSCRIBE}]: {str(text)[:63]!r} is neither true nor "
            "false; has no effect"
        )
    return bool(wanted)


def _read(place: Place, name: str, warnings: list[str]) -> str | None:
    found: EnvVar | None = None
    for variable in place.container.env or ():
        if variable.name == name:
            found = variable  # the last one counts
    if found is None:
        return None
    if found.value_from is not None:
        warnings.append(f"{place.path}.env[{name}]: only a literal value is read; has no effect")
        return None
    return found.value
