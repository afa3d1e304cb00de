"""What an operator may set about a node's cards in a file, in HAMi's words.

Two files of HAMi's say the same things: the section ``nvidia`` of its device configuration, for
all nodes, and ``nodeconfig``, for nodes by name. Both are sections of ours. HAMi reads the second
one as Go reads JSON, without regard to case, and so do we. Keys of HAMi's that a node has no use
for are refused like any unknown one: a setting that has no effect is worse than an error.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from hami_dra.contract.errors import UserError
from hami_dra.contract.healthconfig import HealthConfig, check_health

OperatingMode = Literal["hami-core", "mig"]
MemoryBackend = Literal["hooks", "auto", "driver"]

_MOST_SHARES: Final = 10_000
_MOST_SCALING: Final = 100.0
_MOST_MIB: Final = 2**31 - 1
_MOST_EXPRESSIONS: Final = 32
_SECTIONS: Final = ("nvidia", "nodeconfig", "health")


class DeviceFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cards that are kept out of the cluster; a card that any of these is true of.

    Attributes:
        uuid: UUIDs, exact.
        index: Positions in NVML's order.
        cel: Expressions of DRA's device selectors, over what would be published.
    """

    uuid: tuple[str, ...] = ()
    index: tuple[int, ...] = ()
    cel: tuple[str, ...] = ()


class MpsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cards that a daemon of NVIDIA's Multi-Process Service serves, which the operator runs.

    Attributes:
        pipe_directory: The daemon's CUDA_MPS_PIPE_DIRECTORY on the host.
        shm_directory: The daemon's /dev/shm on the host, if containers are to have it; "": they
            keep their own, which is right where daemon and containers share the host's IPC.
        uuid: Cards that it serves; none: all of the node.
        default: Whether claims that do not choose are served.
    """

    pipe_directory: str = msgspec.field(name="pipedirectory")
    shm_directory: str = msgspec.field(name="shmdirectory", default="")
    uuid: tuple[str, ...] = ()
    default: bool = False


class ProfileList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Profiles into which cards of some models may be divided.

    Attributes:
        models: Texts of which a card's name has one, exact.
        profiles: As NVML names them, such as "1g.5gb".
    """

    models: tuple[str, ...]
    profiles: tuple[str, ...]


class CardConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How cards are offered; what is ``None`` is said elsewhere, or left at its default.

    Attributes:
        operating_mode: "hami-core": cards are shared; "mig": they are partitioned, never shared.
        split_count: Shares that may exist on a card at a time.
        memory_scaling: Published memory of a card, as a multiple of the memory that it has.
        core_scaling: Published cores, as a multiple of 100.
        preconfigured_memory_mib: Memory of cards of which the driver does not say it.
        filter_devices: Cards that are not published.
        mig_profiles: Into what cards may be divided; a card that no entry names, into nothing.
        memory_backend: Who holds memory limits. "hooks": libvgpu; "auto": the driver as well where
            it can; "driver": the same, and claims say where it cannot.
        mps: Which cards MPS serves; none.
    """

    operating_mode: OperatingMode | None = msgspec.field(name="operatingmode", default=None)
    split_count: int | None = msgspec.field(name="devicesplitcount", default=None)
    memory_scaling: float | None = msgspec.field(name="devicememoryscaling", default=None)
    core_scaling: float | None = msgspec.field(name="devicecorescaling", default=None)
    preconfigured_memory_mib: int | None = msgspec.field(
        name="preconfigureddevicememory", default=None
    )
    filter_devices: DeviceFilter | None = msgspec.field(name="filterdevices", default=None)
    mig_profiles: tuple[ProfileList, ...] | None = msgspec.field(
        name="migprofileallowlist", default=None
    )
    memory_backend: MemoryBackend | None = msgspec.field(name="memorybackend", default=None)
    mps: MpsConfig | None = None


class NodeEntry(CardConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``nodeconfig[]``: what differs on one node.

    Attributes:
        name: Name of the Node object, exact.
    """

    name: str


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration file of the node process.

    Attributes:
        nvidia: Holds for every node.
        nodeconfig: Wins over ``nvidia`` field by field, on the node of that name.
        health: When a card is marked, and when the mark ends.
    """

    nvidia: CardConfig = CardConfig()
    nodeconfig: tuple[NodeEntry, ...] = ()
    health: HealthConfig = HealthConfig()


DEFAULT_NODE_CONFIG: Final = NodeConfig()


def decode_node_config(value: Any) -> NodeConfig:
    """Decode the parsed content of a configuration file strictly; ``None`` is an empty one.

    Raises:
        UserError: An unknown key, a wrong type or an impossible value, by name.
    """
    try:
        config = msgspec.convert(_fold_file({} if value is None else value), NodeConfig)
    except msgspec.ValidationError as error:
        raise UserError(f"is not a configuration of the node process: {error}") from error
    _check_cards(config.nvidia, "nvidia")
    names = [entry.name for entry in config.nodeconfig]
    for index, entry in enumerate(config.nodeconfig):
        field = f"nodeconfig[{index}]"
        if not entry.name or names.index(entry.name) != index:
            raise UserError(
                f"{entry.name!r} is empty or stands there twice; name each node once",
                field=f"{field}.name",
            )
        _check_cards(entry, field)
    check_health(config.health)
    return config


def _fold_file(value: Any) -> Any:
    """Return the file with the keys of HAMi's sections in lower case."""
    value = _fold(value, "", only=_SECTIONS)
    if not isinstance(value, Mapping):
        return value
    folded = dict(value)
    if "nvidia" in folded:
        folded["nvidia"] = _fold_cards(folded["nvidia"], "nvidia")
    if isinstance(entries := folded.get("nodeconfig"), list):
        folded["nodeconfig"] = [
            _fold_cards(entry, f"nodeconfig[{index}]") for index, entry in enumerate(entries)
        ]
    return folded


def _fold_cards(value: Any, field: str) -> Any:
    folded = _fold(value, field)
    if isinstance(folded, dict) and "filterdevices" in folded:
        folded["filterdevices"] = _fold(folded["filterdevices"], f"{field}.filterdevices")
    if isinstance(folded, dict) and "mps" in folded:
        folded["mps"] = _fold(folded["mps"], f"{field}.mps")
    if isinstance(folded, dict) and isinstance(lists := folded.get("migprofileallowlist"), list):
        where = f"{field}.migprofileallowlist"
        folded["migprofileallowlist"] = [
            _fold(each, f"{where}[{index}]") for index, each in enumerate(lists)
        ]
    return folded


def _fold(value: Any, field: str, *, only: tuple[str, ...] = ()) -> Any:
    if not isinstance(value, Mapping):
        return value
    folded: dict[Any, Any] = {}
    for key, item in value.items():
        lower = key.lower() if isinstance(key, str) else key
        name = lower if not only or lower in only else key
        if name in folded:
            raise UserError(f"{key!r} stands there twice, in different case", field=field)
        folded[name] = item
    return folded


def _check_cards(cards: CardConfig, field: str) -> None:
    ranges = (
        ("devicesplitcount", cards.split_count, 1, _MOST_SHARES),
        ("devicememoryscaling", cards.memory_scaling, 0.01, _MOST_SCALING),
        ("devicecorescaling", cards.core_scaling, 0.01, _MOST_SCALING),
        ("preconfigureddevicememory", cards.preconfigured_memory_mib, 0, _MOST_MIB),
    )
    for name, number, lowest, highest in ranges:
        if number is not None and not lowest <= number <= highest:
            raise UserError(
                f"is {number:g}; write a number from {lowest:g} to {highest:g}",
                field=f"{field}.{name}",
            )
    chosen = cards.filter_devices or DeviceFilter()
    if min(chosen.index, default=0) < 0:
        raise UserError("counts from 0", field=f"{field}.filterdevices.index")
    if not all(chosen.uuid):
        raise UserError("has an empty name", field=f"{field}.filterdevices.uuid")
    if len(chosen.cel) > _MOST_EXPRESSIONS:
        raise UserError(
            f"has {len(chosen.cel)} expressions; {_MOST_EXPRESSIONS} are allowed",
            field=f"{field}.filterdevices.cel",
        )
    if cards.mps is not None:
        _check_mps(cards.mps, f"{field}.mps")
    for index, each in enumerate(cards.mig_profiles or ()):
        if not (each.models and each.profiles and all((*each.models, *each.profiles))):
            raise UserError(
                "has an empty list or an empty name; name models and their profiles",
                field=f"{field}.migprofileallowlist[{index}]",
            )


def _check_mps(mps: MpsConfig, field: str) -> None:
    paths = (("pipedirectory", mps.pipe_directory), ("shmdirectory", mps.shm_directory))
    for name, path in paths:
        if (path or name == "pipedirectory") and not path.startswith("/"):
            raise UserError(
                f"is {path!r}; write an absolute path of the host", field=f"{field}.{name}"
            )
    if not all(mps.uuid):
        raise UserError("has an empty name", field=f"{field}.uuid")
