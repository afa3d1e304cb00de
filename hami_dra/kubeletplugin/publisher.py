"""Keeps this node's ResourceSlices as they should be, whoever touches them.

The kubelet deletes all slices of its node when it starts, and those of a driver that was away for
30 s. The watch tells at once, and what is missing is created again within a second.

Of several instances on a node only the one that leads publishes: two that differ would write
against each other for ever.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube import Api, ApiError, Informer
from hami_dra.kube.errors import NotFoundError
from hami_dra.kube.objects import NODES, SLICES
from hami_dra.kubeletplugin.slices import (
    Pool,
    SlicePlan,
    find_dropped_fields,
    normalize_devices,
    plan_slices,
    split_counters,
    split_pages,
)

_log = structlog.get_logger(__name__)

_SETTLE_SECONDS: Final = 0.05
"""A DeleteCollection arrives as several events; one reconcile answers them all."""
_BACKOFF_SECONDS: Final = (0.2, 10.0)
_RESYNC_SECONDS: Final = 600.0
_INVALID: Final = 422
_COUNTED: Final = "consumesCounters"

Object = dict[str, Any]


async def always_lead() -> bool:
    """Say that this instance publishes: there is no other."""
    return True


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What the publisher did since the start, and where it stands.

    Attributes:
        generation: Newest generation written or seen.
        devices: Devices that should be published.
        published: Whether the API server holds exactly that.
        creates: Slices created.
        updates: Slices replaced.
        deletes: Slices deleted.
        errors: Reconciles that failed.
        dropped_fields: Device fields that the API server does not store.
    """

    generation: int = 0
    devices: int = 0
    published: bool = False
    creates: int = 0
    updates: int = 0
    deletes: int = 0
    errors: int = 0
    dropped_fields: tuple[str, ...] = ()


class SupersededError(HamiDraError):
    """Another instance leads in the middle of this one's writes."""


class Publisher:
    """Publishes one pool: the node's.

    Args:
        api: Needs get on the node; list, watch, create, update, delete on resourceslices.
        driver: Driver name.
        node_name: The node; also the pool's name.
        on_state: Called with ``None`` when what is stored is what should be, or another instance
            sees to it, else with a reason.
        leads: Whether this instance is to publish; asked before every write. Call `refresh` when
            the answer changes.
    """

    def __init__(
        self,
        api: Api,
        *,
        driver: str,
        node_name: str,
        on_state: Callable[[str | None], None],
        leads: Callable[[], Awaitable[bool]] = always_lead,
    ) -> None:
        self._api = api
        self._leads = leads
        self._driver = driver
        self._node_name = node_name
        self._on_state = on_state
        self._selector = f"spec.driver={driver},spec.nodeName={node_name}"
        self._devices: list[Object] | None = None
        self._counters: list[Object] = []
        self._counters_work = True
        self._wake = asyncio.Event()
        self._written: dict[str, str] = {}
        self._adopted: dict[int, tuple[Any, list[Object]]] = {}
        self._statistics = PublisherStatistics()
        self._informer = Informer(
            api, SLICES, field_selector=self._selector, handler=self._note_event
        )

    def publish(self, devices: Sequence[Object], counters: Sequence[Object] = ()) -> None:
        """Set what should be published, in this order; returns before it is. Idempotent.

        Args:
            devices: The devices.
            counters: The sets of counters that devices consume.
        """
        if self._devices == list(devices) and self._counters == list(counters):
            return
        self._devices = list(devices)
        self._counters = list(counters)
        self._statistics = replace(self._statistics, devices=len(self._devices), published=False)
        self._wake.set()

    def refresh(self) -> None:
        """Compare again soon, such as after a (re-)registration."""
        self._wake.set()

    def statistics(self) -> PublisherStatistics:
        """Return counts since the start."""
        return self._statistics

    async def run(self) -> None:
        """Follow and repair until cancelled; never gives up."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run(), name="slices.watch")
            group.create_task(self._reconcile_forever(), name="slices.reconcile")

    def _note_event(self, kind: str, item: Object) -> None:
        metadata = item.get("metadata", {})
        uid = metadata.get("uid", "")
        if kind == "DELETED":
            self._written.pop(uid, None)
            self._wake.set()
        elif self._written.get(uid) != metadata.get("resourceVersion"):
            self._wake.set()

    async def _reconcile_forever(self) -> None:
        low, high = _BACKOFF_SECONDS
        delay = low
        while True:
            try:
                async with asyncio.timeout(_RESYNC_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._adopted.clear()  # a gate may have been turned on meanwhile
            await asyncio.sleep(_SETTLE_SECONDS)
            self._wake.clear()
            if self._devices is None:
                continue
            if not await self._leads():
                # What it wrote is not remembered: the other one has its own idea of the slices.
                self._adopted.clear()
                self._statistics = replace(self._statistics, published=False)
                self._on_state(None)
                continue
            try:
                await self._reconcile(self._devices)
                delay = low
            except SupersededError:
                continue
            except ApiError as error:
                self._wake.set()
                self._statistics = replace(
                    self._statistics, errors=self._statistics.errors + 1, published=False
                )
                if error.status == _INVALID:
                    delay = high
                _log.warning("slices.retry", error=str(error), delay_seconds=delay)
                self._on_state(f"the API server did not take the slices: {error}")
                await asyncio.sleep(max(delay, error.retry_after_seconds or 0.0))
                delay = min(delay * 2, high)

    async def _reconcile(self, devices: list[Object]) -> None:
        started = asyncio.get_running_loop().time()
        # A consistent list instead of the informer's copy: it cannot be older than our own writes.
        stored, _ = await self._api.list(SLICES, field_selector=self._selector)
        mine = [item for item in stored if self._is_mine(item)]
        pool = Pool(
            driver=self._driver,
            name=self._node_name,
            node_name=self._node_name,
            node_uid=await self._find_node_uid(),
        )
        wanted, counters = devices, self._counters
        if not self._counters_work:
            wanted, counters = [item for item in devices if _COUNTED not in item], []
        pages = [self._adopt(i, page) for i, page in enumerate(split_pages(wanted))]
        plan = plan_slices(
            mine,
            pages,
            pool,
            generation=self._statistics.generation,
            counters=split_counters(counters),
        )
        if not plan.empty:
            if not self._adopted:
                self._statistics = replace(self._statistics, dropped_fields=())
            await self._execute(plan)
            _log.info(
                "slices.reconciled",
                generation=plan.generation,
                devices=len(devices),
                created=len(plan.creates),
                replaced=len(plan.replaces),
                deleted=len(plan.deletes),
                ms=round((asyncio.get_running_loop().time() - started) * 1000, 1),
            )
        current = self._devices is devices
        self._statistics = replace(self._statistics, generation=plan.generation, published=current)
        dropped = self._statistics.dropped_fields
        if current:
            self._on_state(None)
        if dropped and not plan.empty:
            _log.warning(
                "slices.fields_dropped",
                fields=dropped,
                hint="feature gate DRAConsumableCapacity is off: cards are not shared",
            )

    def _is_mine(self, item: Object) -> bool:
        spec = item.get("spec", {})
        wanted = (self._driver, self._node_name)
        return (spec.get("driver"), spec.get("nodeName")) == wanted

    async def _find_node_uid(self) -> str:
        node = await self._api.get(NODES, self._node_name)
        return str(node["metadata"]["uid"])

    async def _execute(self, plan: SlicePlan) -> None:
        for item in plan.deletes:
            await self._require_lead()
            metadata = item["metadata"]
            try:
                await self._api.delete(
                    SLICES,
                    metadata["name"],
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                )
            except NotFoundError:
                continue
            self._count(deletes=1)
        for item in plan.replaces:
            await self._require_lead()
            self._note_write(item, await self._api.replace(SLICES, item["metadata"]["name"], item))
            self._count(updates=1)
        for item in plan.creates:
            await self._require_lead()
            self._note_write(item, await self._api.create(SLICES, item))
            self._count(creates=1)

    async def _require_lead(self) -> None:
        if not await self._leads():
            self._wake.set()
            raise SupersededError("another instance publishes now; it does the rest")

    def _count(self, *, creates: int = 0, updates: int = 0, deletes: int = 0) -> None:
        known = self._statistics
        self._statistics = replace(
            known,
            creates=known.creates + creates,
            updates=known.updates + updates,
            deletes=known.deletes + deletes,
        )

    def _note_write(self, wanted: Object, stored: Object) -> None:
        """Remember our own write, and what the API server left out of it.

        A field whose feature gate is off is not stored. Wanting it again would be an endless loop
        of updates, so the stored form is adopted until the next full comparison.
        """
        metadata = stored["metadata"]
        self._written[metadata["uid"]] = metadata["resourceVersion"]
        sent = wanted["spec"].get("devices") or []
        kept = stored.get("spec", {}).get("devices") or []
        dropped = find_dropped_fields(sent, kept)
        if any(field.startswith(_COUNTED) for field in dropped):
            # Devices that exclude each other must not be offered where nobody counts.
            self._counters_work = False
            self._wake.set()
            _log.warning(
                "slices.no_counters",
                hint="feature gate DRAPartitionableDevices is off: cards are not divided",
            )
        elif dropped:
            index = int(metadata["name"].partition("-")[0], 16)
            self._adopted[index] = (normalize_devices(sent), kept)
        known = self._statistics.dropped_fields
        self._statistics = replace(
            self._statistics, dropped_fields=tuple(sorted({*known, *dropped}))
        )

    def _adopt(self, index: int, page: list[Object]) -> list[Object]:
        wanted, kept = self._adopted.get(index, (None, page))
        return kept if wanted == normalize_devices(page) else page
