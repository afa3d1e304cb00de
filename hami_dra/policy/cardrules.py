"""How this node offers its cards: from the configuration and a card to what is published."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.contract.nodeconfig import (
    CardConfig,
    DeviceFilter,
    MemoryBackend,
    MpsConfig,
    NodeConfig,
    OperatingMode,
    ProfileList,
)
from hami_dra.policy.devices import (
    CORES_PER_CARD,
    CardCapacity,
    CardOffer,
    CardService,
    GpuFacts,
    describe_offer,
)

_ONE: Final = Fraction(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardRules:
    """The configuration, as far as it concerns one node.

    Attributes:
        operating_mode: Whether cards are shared or partitioned.
        split_count: Shares that may exist on a card at a time.
        memory_scaling: Published memory, as a multiple of the card's.
        core_scaling: Published cores, as a multiple of 100.
        preconfigured_memory_mib: Memory of cards of which the driver does not say it; 0: unknown.
        filter_devices: Cards that are not published.
        mig_profiles: Into what cards are divided; ``None``: all that they can be.
        memory_backend: Who holds memory limits.
        mps: Which cards MPS serves; ``None``: none.
    """

    operating_mode: OperatingMode = "hami-core"
    split_count: int = 10
    memory_scaling: Fraction = _ONE
    core_scaling: Fraction = _ONE
    preconfigured_memory_mib: int = 0
    filter_devices: DeviceFilter = field(default_factory=DeviceFilter)
    mig_profiles: tuple[ProfileList, ...] | None = None
    memory_backend: MemoryBackend = "hooks"
    mps: MpsConfig | None = None

    def allows_profile(self, gpu: GpuFacts, name: str) -> bool:
        """Whether a card may be divided into parts of a profile."""
        if self.mig_profiles is None:
            return True
        return any(
            name in each.profiles and any(model in gpu.product_name for model in each.models)
            for each in self.mig_profiles
        )


def resolve_rules(config: NodeConfig, *, node_name: str, split_count: int) -> CardRules:
    """Return what holds on a node: its own entry, then ``nvidia``, then the default.

    Args:
        config: The file.
        node_name: Name of the Node object.
        split_count: The default that the command line sets.
    """
    own = next((entry for entry in config.nodeconfig if entry.name == node_name), None)
    said: list[CardConfig] = [*([own] if own else []), config.nvidia]
    known = {
        name: value
        for each in reversed(said)
        for name in CardConfig.__struct_fields__
        if (value := getattr(each, name)) is not None
    }
    for name in ("memory_scaling", "core_scaling"):
        if name in known:
            # As it was written: the binary fraction nearest to 0.29 times 100 is less than 29.
            known[name] = Fraction(str(known[name]))
    return CardRules(**{"split_count": split_count} | known)


def offer_cards(gpus: Iterable[GpuFacts], rules: CardRules) -> tuple[CardOffer, ...]:
    """Return how cards are offered, each with the reason if it is not published."""
    return tuple(offer_card(gpu, rules) for gpu in gpus)


def offer_card(gpu: GpuFacts, rules: CardRules) -> CardOffer:
    """Return how one card is offered; see `offer_cards`."""
    if not gpu.memory_mib:
        gpu = replace(gpu, memory_mib=rules.preconfigured_memory_mib)
    offer = CardOffer(
        gpu=gpu,
        capacity=CardCapacity(
            memory_mib=int(gpu.memory_mib * rules.memory_scaling),
            cores=max(1, int(CORES_PER_CARD * rules.core_scaling)),
            slots=rules.split_count,
        ),
        mps=_find_service(gpu, rules.mps),
    )
    return replace(offer, hidden=_find_reason(offer, rules))


def _find_service(gpu: GpuFacts, mps: MpsConfig | None) -> CardService | None:
    if mps is None or (mps.uuid and gpu.uuid not in mps.uuid):
        return None
    return CardService(
        pipe_directory=mps.pipe_directory,
        shm_directory=mps.shm_directory,
        default=mps.default,
    )


def _find_reason(offer: CardOffer, rules: CardRules) -> str:
    """Return why a card is not published; "" if it is."""
    gpu, chosen = offer.gpu, rules.filter_devices
    if gpu.uuid in chosen.uuid:
        return "its UUID is in filterdevices.uuid"
    if gpu.index in chosen.index:
        return f"its index {gpu.index} is in filterdevices.index"
    if not offer.capacity.memory_mib:
        return "the driver does not say its memory; set preconfigureddevicememory"
    if rules.operating_mode == "mig":
        return "operatingmode is mig: cards are partitioned, not shared"
    return _judge_expressions(offer, chosen.cel)


def _judge_expressions(offer: CardOffer, expressions: tuple[str, ...]) -> str:
    """Say which expression hides a card.

    One that fails hides it as well: a filter keeps cards for something else, and a card that
    cannot be judged may be one of them.
    """
    if not expressions:
        return ""
    # Imported here: a parser that few nodes need.
    from hami_dra.policy import cel  # noqa: PLC0415

    device = cel.view_device(DRIVER_NAME, describe_offer(offer))
    for index, expression in enumerate(expressions):
        answer = device if isinstance(device, cel.Unanswered) else cel.evaluate(expression, device)
        if isinstance(answer, cel.Unanswered):
            return f"filterdevices.cel[{index}] cannot be judged: {answer.reason}"
        if answer:
            return f"filterdevices.cel[{index}] is true of it"
    return ""


def find_bad_expression(config: NodeConfig) -> tuple[str, str] | None:
    """Return the field and the fault of an expression that cannot be evaluated here, if any."""
    cards = [("nvidia", config.nvidia)]
    cards += [(f"nodeconfig[{i}]", entry) for i, entry in enumerate(config.nodeconfig)]
    expressions = [
        (f"{name}.filterdevices.cel[{index}]", expression)
        for name, each in cards
        for index, expression in enumerate((each.filter_devices or DeviceFilter()).cel)
    ]
    if not expressions:
        return None
    from hami_dra.policy import cel  # noqa: PLC0415

    faults = ((place, cel.find_fault(expression)) for place, expression in expressions)
    return next(((place, fault) for place, fault in faults if fault), None)
