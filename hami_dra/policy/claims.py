"""Claims and templates that people write themselves: what the API server lets pass, but should not.

It validates neither names nor signs of requested capacities, and of opaque configuration only the
size (resource.k8s.io/v1). A misspelled capacity leaves a pod pending for ever; a negative one gives
away, on some releases, what belongs to others.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from hami_dra.contract.claimconfig import ShareConfig, decode_share_config
from hami_dra.contract.errors import UserError
from hami_dra.contract.names import (
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    CAPACITY_SLOTS,
    DEVICE_CLASS,
    DRIVER_NAME,
)
from hami_dra.contract.quantity import MIB, parse_bytes, parse_quantity
from hami_dra.policy.fit import Demand, Need

_CAPACITIES: Final = (CAPACITY_MEMORY, CAPACITY_CORES, CAPACITY_SLOTS)


class Capacity(msgspec.Struct, frozen=True):
    """``capacity`` of a request."""

    requests: dict[str, str | int] | None = None


class Ask(msgspec.Struct, frozen=True, rename="camel"):
    """``exactly`` of a request, or one of its ``firstAvailable``."""

    name: str = ""
    device_class_name: str = ""
    allocation_mode: str = "ExactCount"
    count: int = 1
    admin_access: bool | None = None
    capacity: Capacity | None = None


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``devices.requests``."""

    name: str = ""
    exactly: Ask | None = None
    first_available: list[Ask] | None = None


class Opaque(msgspec.Struct, frozen=True):
    """``opaque`` of a configuration."""

    driver: str = ""
    parameters: Any = None


class Config(msgspec.Struct, frozen=True):
    """One of ``devices.config``."""

    requests: list[str] | None = None
    opaque: Opaque | None = None


class Devices(msgspec.Struct, frozen=True):
    """``devices`` of a claim."""

    requests: list[Request] | None = None
    config: list[Config] | None = None


class ClaimSpec(msgspec.Struct, frozen=True):
    """``spec`` of a claim, ``spec.spec`` of a template."""

    devices: Devices = Devices()


def check_claim(
    spec: Mapping[str, Any], *, field: str, allow_disable_control: bool = True
) -> list[Demand]:
    """Check the parts of a claim's spec that concern this driver.

    Args:
        spec: The spec of a claim, or the inner one of a template.
        field: Its JSON path, "spec" or "spec.spec".
        allow_disable_control: Whether a claim may lift the limits of its own share.

    Returns:
        What it demands of our cards, for warnings.

    Raises:
        UserError: By the path of the field.
    """
    try:
        devices = msgspec.convert(spec, ClaimSpec).devices
    except msgspec.ValidationError as error:
        raise UserError(f"cannot be read: {error}", field=field) from error
    path = f"{field}.devices"
    requests = list(enumerate(devices.requests or ()))
    memory: dict[str, int | None] = {}
    cores: dict[str, int] = {}
    demands = []
    for index, request in requests:
        needs = []
        for name, ask, where in _list_asks(request, f"{path}.requests[{index}]"):
            need = _check_ask(ask, where) if ask.device_class_name == DEVICE_CLASS else None
            memory[name] = need.memory_mib if need and need.memory_mib else None
            if need is not None:
                cores[name] = need.cores
                needs.append(need)
        # With an alternative in another class, ours need not fit.
        if needs and len(needs) == len(request.first_available or (None,)):
            demands.append(Demand(f"request {request.name!r}", tuple(needs)))
    for index, config in enumerate(devices.config or ()):
        if config.opaque is not None and config.opaque.driver == DRIVER_NAME:
            where = f"{path}.config[{index}]"
            decoded = _check_config(config, config.opaque, memory, where)
            _check_ceiling(decoded, config, cores, f"{where}.opaque.parameters")
            if decoded.disable_control and not allow_disable_control:
                raise UserError(
                    "lifts the limits of the share, which this cluster does not allow; remove it",
                    field=f"{where}.opaque.parameters.disableControl",
                )
    return demands


def _list_asks(request: Request, path: str) -> Iterator[tuple[str, Ask, str]]:
    if request.exactly is not None:
        yield request.name, request.exactly, f"{path}.exactly"
    for index, ask in enumerate(request.first_available or ()):
        yield f"{request.name}/{ask.name}", ask, f"{path}.firstAvailable[{index}]"


def _check_ask(ask: Ask, path: str) -> Need:
    values: dict[str, int] = {}
    for name, text in ((ask.capacity and ask.capacity.requests) or {}).items():
        field = f'{path}.capacity.requests["{name}"]'
        if name not in _CAPACITIES:
            raise UserError(_suggest(name), field=field)
        try:
            exact = parse_quantity(text)
        except ValueError as error:
            raise UserError(str(error), field=field) from error
        if exact < 0:
            raise UserError(f"is {text}; a capacity cannot be negative", field=field)
        if name == CAPACITY_MEMORY and not exact and not ask.admin_access:
            raise UserError(
                "is 0; write how much memory the share needs, or leave it out for a whole card",
                field=field,
            )
        values[name] = parse_bytes(text)
    return Need(
        cards=ask.count if ask.allocation_mode == "ExactCount" else 1,
        memory_mib=-(-values.get(CAPACITY_MEMORY, 0) // MIB),
        cores=values.get(CAPACITY_CORES, 0),
        slots=values.get(CAPACITY_SLOTS, 0),
    )


def _suggest(name: str) -> str:
    bare = name.removeprefix(f"{DRIVER_NAME}/")
    known = ", ".join(_CAPACITIES)
    guess = difflib.get_close_matches(bare.lower(), _CAPACITIES, n=1)
    hint = f"; did you mean {guess[0]!r}?" if guess else ""
    return f"no card has this capacity (they have {known}), so it could never be allocated{hint}"


def _check_config(
    config: Config, opaque: Opaque, memory: Mapping[str, int | None], path: str
) -> ShareConfig:
    """Return one configuration of ours, checked against the requests that it is for.

    Args:
        config: The entry.
        opaque: Its opaque part.
        memory: Request, or request/subrequest, to the MiB it asks for; ``None`` for a whole card.
        path: JSON path of the entry.
    """
    mains = {name.partition("/")[0] for name in memory}
    for index, name in enumerate(config.requests or ()):
        if name not in memory and name not in mains:
            raise UserError(
                f"there is no request {name!r}; the claim has {', '.join(sorted(mains)) or 'none'}",
                field=f"{path}.requests[{index}]",
            )
    parameters = f"{path}.opaque.parameters"
    decoded = decode_share_config(opaque.parameters, field=parameters)
    limit = decoded.memory_limit_mib
    if limit is None:
        return decoded
    targets = set(config.requests or memory)
    for name, mib in memory.items():
        if mib is not None and mib < limit and targets & {name, name.partition("/")[0]}:
            raise UserError(
                f"is {limit} MiB, but request {name!r} consumes only {mib} MiB of the card; "
                "a limit cannot be more than what is consumed",
                field=f"{parameters}.memoryLimitMiB",
            )
    return decoded


def _check_ceiling(
    decoded: ShareConfig, config: Config, cores: Mapping[str, int], path: str
) -> None:
    """Refuse a ceiling below what a request has anyway.

    Args:
        decoded: The configuration.
        config: Its entry.
        cores: Request, or request/subrequest, to the percent it asks for; 0 = not limited.
        path: JSON path of the parameters.
    """
    ceiling = decoded.core_ceiling_percent
    targets = set(config.requests or cores)
    for name, percent in cores.items():
        if ceiling is not None and targets & {name, name.partition("/")[0]} and ceiling < percent:
            raise UserError(
                f"is {ceiling}, but request {name!r} has {percent} percent at any time; a ceiling "
                "is what it is raised to while nobody else works on the card",
                field=f"{path}.coreCeilingPercent",
            )
