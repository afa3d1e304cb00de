"""What an allocated claim means on this node: which cards, and which limits hold.

The scheduler's answer (``status.allocation``) decides, not what the claim asked for: the consumed
capacity of each result is what was taken from the card.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hami_dra.contract import names
from hami_dra.contract.claimconfig import CorePolicy, ShareConfig, decode_share_config
from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.quantity import MIB, parse_bytes, parse_quantity
from hami_dra.policy.devices import CORES_PER_CARD, CardOffer
from hami_dra.policy.mig import overlap
from hami_dra.policy.migdevices import MigDevice, is_divided

_RESULTS = "status.allocation.devices.results"
_CONFIG = "status.allocation.devices.config"
_NO_PARTS: Mapping[str, MigDevice] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundPart:
    """The MIG instance behind a result.

    Attributes:
        card: UUID of the card.
        profile: NVML's id of the profile.
        start: First memory slice.
        size: Memory slices.
        dynamic: Whether this program makes and ends the instance.
        boot_id: Boot in which it was made, or was about to be; instances do not outlive one.
        instance: NVML's id of the GPU instance; ``None`` before it exists.
        part: NVML's id of the compute instance; ``None`` before it exists.
        uuid: ``MIG-…``, "" before it exists.
        label: Attribute ``profile`` of the device.
    """

    card: str
    profile: int
    start: int
    size: int
    dynamic: bool = False
    boot_id: str = ""
    instance: int | None = None
    part: int | None = None
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundService:
    """The MPS daemon that a share's programs are clients of.

    Attributes:
        pipe_directory: Of the host.
        shm_directory: Of the host; "": containers keep their own /dev/shm.
    """

    pipe_directory: str
    shm_directory: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundDevice:
    """One result of the allocation, understood.

    Attributes:
        request: Name in ``spec.devices.requests``: "g" of "g/small".
        pool: Pool of the device, echoed to the kubelet.
        device: Device name in the ResourceSlice.
        uuid: The card.
        minor: N of ``/dev/nvidiaN``.
        share_id: The scheduler's share; ``None`` where sharing is off in the cluster.
        memory_mib: Enforced memory; 0 = not limited.
        cores_percent: Enforced compute; 0 = not limited.
        consumed_memory_mib: What counts against the card.
        consumed_cores: What counts against the card's 100.
        consumed_slots: What counts against the card's split count.
        exclusive: Whole card, by a cluster that cannot share: nobody else may be on it.
        admin: Admin access: not limited and not counted.
        priority: HAMi's task priority; ``None`` for libvgpu's default.
        core_policy: When compute is throttled; ``None`` for libvgpu's default.
        control_disabled: The limits are told, but not enforced.
        ceiling_percent: What compute is raised to while nobody else works on the card; 0 = all.
        burst_ms: Time of an unused share that can be saved up; 0 for libvgpu's default.
        oversubscription: What the card has no room for may be the host's, up to memory_mib.
        subrequest: "small" of "g/small"; "" where the request has no alternatives.
        mig: What of the card it is, if the card is divided; `uuid` is then the device's and
            `minor` the card's.
        mps: Who holds compute in space; ``None``: libvgpu does in time.
    """

    request: str
    pool: str
    device: str
    uuid: str
    minor: int
    share_id: str | None
    memory_mib: int
    cores_percent: int
    consumed_memory_mib: int
    consumed_cores: int
    consumed_slots: int
    exclusive: bool = False
    admin: bool = False
    priority: int | None = None
    core_policy: CorePolicy | None = None
    control_disabled: bool = False
    subrequest: str = ""
    ceiling_percent: int = 0
    burst_ms: int = 0
    oversubscription: bool = False
    mig: BoundPart | None = None
    mps: BoundService | None = None

    @property
    def thread_percent(self) -> int:
        """Part of the card's multiprocessors that MPS leaves each of its processes; 100 = all."""
        limited = not self.control_disabled and self.core_policy != "disable"
        return (self.cores_percent or CORES_PER_CARD) if limited else CORES_PER_CARD

    @property
    def controlled(self) -> bool:
        """Whether the container gets a grant and libvgpu: a share, limited or not."""
        return not (self.exclusive or self.admin)

    @property
    def card(self) -> str:
        """UUID of the card that it is, or is a part of."""
        return self.uuid if self.mig is None else self.mig.card


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """The plan for one claim; everything that Prepare does follows from it.

    Attributes:
        claim_uid: ``metadata.uid``.
        namespace: Of the claim.
        name: Of the claim.
        devices: Our results of the allocation, in its order.
        pod_claim: Entry in ``pod.spec.resourceClaims`` of a claim that was made from a template,
            else "".
    """

    claim_uid: str
    namespace: str
    name: str
    devices: tuple[BoundDevice, ...]
    pod_claim: str = ""

    @property
    def requests(self) -> dict[str, tuple[BoundDevice, ...]]:
        """Devices by request, requests in the order of their first result."""
        grouped: dict[str, tuple[BoundDevice, ...]] = {}
        for device in self.devices:
            grouped[device.request] = (*grouped.get(device.request, ()), device)
        return grouped


def bind_claim(
    claim: Mapping[str, Any],
    offers: Mapping[str, CardOffer],
    *,
    pool: str,
    parts: Mapping[str, MigDevice] = _NO_PARTS,
) -> Binding:
    """Understand an allocated claim.

    Args:
        claim: A ResourceClaim.
        offers: This node's cards by device name, as they are offered now. Hidden ones count too:
            they may have been allocated before they were hidden.
        pool: This node's pool.
        parts: Devices of this node's divided cards by name.

    Raises:
        UserError: The claim can never be prepared here; names the claim and the field.
        RetryError: Not allocated yet, or a card is not there (it may come back).
    """
    metadata = claim.get("metadata") or {}
    label = f"claim {metadata.get('namespace', '')}/{metadata.get('name', '')}"
    allocation = (claim.get("status") or {}).get("allocation")
    if not allocation:
        raise RetryError(f"{label}: status.allocation is empty; the scheduler has not placed it")
    devices = allocation.get("devices") or {}
    try:
        bound = tuple(
            _bind_part(result, parts[str(result.get("device"))])
            if result.get("device") in parts
            else _bind_result(result, f"{_RESULTS}[{index}]", devices.get("config") or [], offers)
            for index, result in _own_results(devices.get("results") or [], pool)
        )
    except UserError as error:
        raise _locate(error, label) from error
    except RetryError as error:
        raise RetryError(f"{label}: {error}") from error
    if not bound:
        none = f"has no device of driver {names.DRIVER_NAME} in this node's pool {pool!r}"
        raise _locate(UserError(none, field=_RESULTS), label)
    return Binding(
        claim_uid=str(metadata.get("uid", "")),
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        devices=bound,
        pod_claim=str((metadata.get("annotations") or {}).get(names.ANNOTATION_POD_CLAIM) or ""),
    )


def exclude_each_other(one: BoundDevice, other: BoundDevice) -> bool:
    """Whether two devices of different claims cannot exist on one card at the same time.

    Shares of one card can, as far as this goes; parts that overlap cannot, nor a share and a part.
    """
    if one.mig is None and other.mig is None:
        return False
    if one.card != other.card:
        return False
    if one.mig is None or other.mig is None:
        return True
    if one.device == other.device or not (one.mig.dynamic or other.mig.dynamic):
        return False  # the sums of the device say it, and what exists does not overlap
    return overlap(one.mig.start, one.mig.size, other.mig.start, other.mig.size)


def _locate(error: UserError, label: str) -> UserError:
    """Return the error with the claim's name before it; the field is in the text already."""
    located = UserError(f"{label}: {error}")
    located.field = error.field
    return located


def _own_results(
    results: Sequence[Mapping[str, Any]], pool: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, result in enumerate(results):
        if result.get("driver") == names.DRIVER_NAME and result.get("pool") == pool:
            yield index, result


def _bind_result(
    result: Mapping[str, Any],
    field: str,
    configs: Sequence[Mapping[str, Any]],
    offers: Mapping[str, CardOffer],
) -> BoundDevice:
    request = str(result.get("request", ""))
    device = str(result.get("device", ""))
    offer = offers.get(device)
    if offer is None:
        known = ", ".join(sorted(offers)) or "none"
        raise RetryError(
            f"{field}.device: card {device} is gone from this node (present: {known}); bring the "
            "card back, or delete the pod so that its claim is allocated anew"
        )
    gpu, whole = offer.gpu, offer.capacity
    if is_divided(gpu):
        raise RetryError(
            f"{field}.device: card {device} is in MIG mode now and cannot be used as a whole; end "
            "its instances and switch it back (nvidia-smi -mig 0), or delete the pod so that its "
            "claim is allocated anew"
        )
    config, config_field, source = _find_config(configs, request)
    admin = bool(result.get("adminAccess"))
    share_id = result.get("shareID")
    exclusive = share_id is None or result.get("consumedCapacity") is None
    if admin or exclusive:
        return BoundDevice(
            request=request.partition("/")[0],
            subrequest=request.partition("/")[2],
            pool=str(result["pool"]),
            device=device,
            uuid=gpu.uuid,
            minor=gpu.minor,
            share_id=share_id,
            memory_mib=0,
            cores_percent=0,
            consumed_memory_mib=0 if admin else whole.memory_mib,
            consumed_cores=0 if admin else whole.cores,
            consumed_slots=0 if admin else whole.slots,
            exclusive=not admin,
            admin=admin,
        )
    consumed = result["consumedCapacity"]
    memory_mib = _read_memory(consumed, field)
    cores = _read_count(consumed, names.CAPACITY_CORES, field, absent=0)
    limit_mib = _limit_memory(memory_mib, whole.memory_mib, config, config_field, source)
    return BoundDevice(
        request=request.partition("/")[0],
        subrequest=request.partition("/")[2],
        pool=str(result["pool"]),
        device=device,
        uuid=gpu.uuid,
        minor=gpu.minor,
        share_id=str(share_id),
        # A share of everything needs no hooks: 0 tells libvgpu to hand none out. On a card whose
        # memory is scaled, what was published is not what is there, so the limit is always told.
        memory_mib=0 if limit_mib >= gpu.memory_mib == whole.memory_mib else limit_mib,
        cores_percent=0 if cores >= CORES_PER_CARD else cores,
        consumed_memory_mib=memory_mib,
        consumed_cores=cores,
        consumed_slots=_read_count(consumed, names.CAPACITY_SLOTS, field, absent=1),
        priority=config.priority if config else None,
        core_policy=config.core_policy if config else None,
        control_disabled=config.disable_control if config else False,
        ceiling_percent=(config.core_ceiling_percent or 0) if config else 0,
        burst_ms=(config.core_burst_ms or 0) if config else 0,
        oversubscription=config.oversubscription if config else False,
        mps=_choose_service(offer, config, config_field),
    )


def _choose_service(
    offer: CardOffer, config: ShareConfig | None, field: str
) -> BoundService | None:
    wanted = config.compute_backend if config else None
    if wanted == "mps" and offer.mps is None:
        raise UserError(
            f'is "mps", but this node serves card {offer.gpu.uuid} by no MPS daemon; leave it out, '
            "or select cards with the attribute mps",
            field=f"{field}.computeBackend",
        )
    if offer.mps is None or wanted == "hooks" or (wanted is None and not offer.mps.default):
        return None
    return BoundService(
        pipe_directory=offer.mps.pipe_directory, shm_directory=offer.mps.shm_directory
    )


def _bind_part(result: Mapping[str, Any], device: MigDevice) -> BoundDevice:
    """A part is taken whole, and the card itself keeps it apart: no grant, no library."""
    admin = bool(result.get("adminAccess"))
    request, _, subrequest = str(result.get("request", "")).partition("/")
    return BoundDevice(
        request=request,
        subrequest=subrequest,
        pool=str(result["pool"]),
        device=device.name,
        uuid=device.uuid,
        minor=device.card.minor,
        share_id=None,
        memory_mib=0,
        cores_percent=0,
        consumed_memory_mib=0 if admin else device.profile.memory_mib,
        consumed_cores=0 if admin else device.cores,
        consumed_slots=0 if admin else 1,
        exclusive=not admin,
        admin=admin,
        mig=BoundPart(
            card=device.card.uuid,
            profile=device.profile.number,
            start=device.start,
            size=device.profile.size,
            # Who only looks makes nothing, and so ends nothing.
            dynamic=device.dynamic and not admin,
            instance=device.instance,
            part=device.part,
            uuid="" if device.dynamic else device.uuid,
            label=device.label,
        ),
    )


def _read_memory(consumed: Mapping[str, Any], field: str) -> int:
    where = f"{field}.consumedCapacity.{names.CAPACITY_MEMORY}"
    text = consumed.get(names.CAPACITY_MEMORY)
    try:
        memory_mib = 0 if text is None else parse_bytes(text) // MIB
    except ValueError as error:
        raise UserError(str(error), field=where) from error
    if memory_mib <= 0:
        raise UserError(
            f"is {text or 'missing'}: a share without memory would not be limited; ask for at "
            f"least 1Mi in spec.devices.requests[].exactly.capacity.requests."
            f"{names.CAPACITY_MEMORY} (0 is for adminAccess only)",
            field=where,
        )
    return memory_mib


def _read_count(consumed: Mapping[str, Any], capacity: str, field: str, *, absent: int) -> int:
    where = f"{field}.consumedCapacity.{capacity}"
    text = consumed.get(capacity)
    if text is None:
        return absent
    try:
        value = parse_quantity(text)
    except ValueError as error:
        raise UserError(str(error), field=where) from error
    if value < 0:
        raise UserError(f"is {text}, less than nothing", field=where)
    return -(-value.numerator // value.denominator)


def _find_config(
    configs: Sequence[Mapping[str, Any]], request: str
) -> tuple[ShareConfig | None, str, str]:
    """Return the configuration that holds for a result, where it stands, and its source.

    A claim's configuration wins over its class's; among equals the last one wins. An entry names
    requests ("g"), one alternative of a request ("g/small"), or, naming none, holds for all.
    """
    chosen: tuple[ShareConfig | None, str, str] = (None, "", "")
    wanted = {request, request.partition("/")[0]}
    for source in ("FromClass", "FromClaim"):
        for index, entry in enumerate(configs):
            opaque = entry.get("opaque") or {}
            listed = set(entry.get("requests") or ())
            if (
                entry.get("source", "FromClaim") == source
                and opaque.get("driver") == names.DRIVER_NAME
                and (not listed or listed & wanted)
            ):
                field = f"{_CONFIG}[{index}].opaque.parameters"
                config = decode_share_config(opaque.get("parameters"), field=field)
                chosen = (config, field, source)
    return chosen


def _limit_memory(
    consumed_mib: int, card_mib: int, config: ShareConfig | None, field: str, source: str
) -> int:
    if config is None:
        return consumed_mib
    if config.memory_limit_percent is not None:
        # Rounded down like HAMi's; never 0, which would mean unlimited.
        percent_mib = max(1, card_mib * config.memory_limit_percent // 100)
        return min(percent_mib, consumed_mib)
    wanted = config.memory_limit_mib
    if wanted is None or wanted == consumed_mib:
        return consumed_mib
    if wanted > consumed_mib and source == "FromClaim":
        raise UserError(
            f"is {wanted}, more than the {consumed_mib} MiB that the claim consumes; it can only "
            "lower the limit",
            field=f"{field}.memoryLimitMiB",
        )
    # A class's limit is a ceiling for claims of every size.
    return min(wanted, consumed_mib)
