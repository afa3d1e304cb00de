"""The node process: what is opened in which order, and closed in the reverse one.

Start: (1) settings; (2) health endpoints; (3) a place among the instances of this node, libvgpu on
the host, ledger, waiting for as long as the disk is full or read-only; (4) repair of CDI files and
leftovers, before anybody can call; (5) DRA socket; (6) registration socket, so that the kubelet
finds a service behind it; (7) slices follow the cards, while this instance leads.

Stop: (1) another instance may lead; (2) registration socket away, which deregisters; (3) running
calls end within the drain time, then the DRA socket goes; (4) background tasks; (5) ledger, and
the place among the instances. Slices stay: the kubelet removes them if no plugin comes back
within 30 s, and a restart inside that time goes unnoticed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.durable import Disk
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.contract.names import DRIVER_NAME, FIELD_MANAGER
from hami_dra.contract.nodeconfig import NodeConfig
from hami_dra.gpu.events import NvmlEvents
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.memorylimits import DriverMemoryLimits
from hami_dra.gpu.mig import NvmlInstances
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.gpu.processes import NvmlProcesses
from hami_dra.gpu.source import EventSource, GpuSource
from hami_dra.kube import Api, connect
from hami_dra.kube.podevents import PodEvents
from hami_dra.kubeletplugin.instances import Instance, follow_lead, sweep_sockets
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.lulls import Lulls
from hami_dra.kubeletplugin.publisher import Publisher
from hami_dra.kubeletplugin.registration import Registration
from hami_dra.kubeletplugin.service import VERSIONS, DraService
from hami_dra.node import healthstream
from hami_dra.node.arbitration import Arbitration
from hami_dra.node.audit import EnforcementAudit
from hami_dra.node.basedevices import BaseDevices
from hami_dra.node.cards import Cards
from hami_dra.node.claimmetrics import ClaimMetrics
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.node.claimwatch import ClaimWatch, FollowedClaims
from hami_dra.node.configfile import ConfigFile
from hami_dra.node.copies import read_copies
from hami_dra.node.cordon import CordonWatch
from hami_dra.node.driverlimits import DriverLimits
from hami_dra.node.gates import Gates
from hami_dra.node.healthstream import HealthStream
from hami_dra.node.inventory import Inventory
from hami_dra.node.ledger import Ledger
from hami_dra.node.libfile import install_library
from hami_dra.node.metrics import NodeMetrics
from hami_dra.node.preparer import ClaimFiles, Preparer, Step, no_step, read_boot_id
from hami_dra.node.recovery import Recovery, RecoveryReport
from hami_dra.node.settings import NodeSettings
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.node.sharemetrics import ShareMetrics
from hami_dra.policy.driverlimits import DriverHold
from hami_dra.service.clock import SystemClock
from hami_dra.service.exposition import Exposition
from hami_dra.service.heap import give_back, keep_what_is_there, use_one_arena, use_small_pages
from hami_dra.service.http import Readiness, serve_health
from hami_dra.service.supervise import Supervisor

_log = structlog.get_logger(__name__)

CONDITIONS: Final = ("nvml", "slices", "registered", "cdi-dir", "state-dir")
_BACKOFF_SECONDS: Final = (0.5, 10.0)
_DISK_THREADS: Final = 8
"""They only wait (docs/decisions/0022-durable-together.md)."""

T = TypeVar("T")


async def run_node(
    settings: NodeSettings,
    *,
    source: GpuSource | None = None,
    events: EventSource | None = None,
    step: Step = no_step,
) -> None:
    """Run the process until it is asked to stop.

    Args:
        settings: What the operator set.
        source: Where cards come from; NVML unless a test says otherwise.
        events: Where events of cards come from; NVML if the cards do, else none.
        step: See `Preparer`.

    Raises:
        FatalError: It cannot work as it was started.
    """
    settings.check()
    use_small_pages()
    use_one_arena()
    readiness = Readiness(*CONDITIONS)
    exposition = Exposition()
    library = NvmlLibrary(settings.driver_root)
    if source is None:
        nvml = NvmlSource(settings.driver_root, sysfs=settings.sysfs)
        library = nvml.library
        source, events = nvml, events or NvmlEvents(library)
    async with (
        AsyncExitStack() as opened,
        connect(settings.kubeconfig) as session,
        Supervisor() as supervisor,
        serve_health(
            settings.health_host, settings.health_port, readiness, exposition.render
        ) as port,
    ):
        _log.info("node.starting", node=settings.node_name, health_port=port)

        async def open_state() -> _State:
            async with AsyncExitStack() as attempt:
                state = await _open_state(settings, attempt)
                opened.push_async_exit(attempt.pop_all())
                return state

        note = partial(readiness.set, "state-dir")
        state = await _persist(open_state, supervisor, note)
        if state is not None:
            loop, config_file = asyncio.get_running_loop(), ConfigFile(settings.config)
            config = await loop.run_in_executor(state.executor, config_file.read)
            inputs = _Inputs(
                source,
                events,
                NvmlProcesses(library),
                DriverMemoryLimits(library, cgroups=settings.cgroups),
                config_file,
                config,
            )
            node = _Node(settings, Api(session), state, readiness, inputs, step)
            exposition.register(node.metrics)
            exposition.register(node.claim_metrics)
            exposition.register(ShareMetrics(node.arbitration.statistics, node.watch.held))
            if await _persist(node.recover, supervisor, note) is not None:
                await node.serve(supervisor)


@dataclass(frozen=True, slots=True)
class _State:
    """What is open on the disk."""

    instance: Instance
    ledger: Ledger
    files: ClaimFiles
    executor: ThreadPoolExecutor
    disk: Disk


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where what is known of cards comes from."""

    source: GpuSource
    events: EventSource | None
    processes: NvmlProcesses
    memory_limits: DriverMemoryLimits
    config_file: ConfigFile
    config: NodeConfig


class _Node:
    """The rooms of the process, wired to each other."""

    def __init__(  # noqa: PLR0917 - what run_node opened, handed on once
        self,
        settings: NodeSettings,
        api: Api,
        state: _State,
        readiness: Readiness,
        inputs: _Inputs,
        step: Step,
    ) -> None:
        self._settings = settings
        self._state = state
        self._readiness = readiness
        instance, files, executor = state.instance, state.files, state.executor
        sockets = settings.sockets
        boot_id = read_boot_id()
        locks = ClaimLocks(settings.state_dir / "claims.lock")
        self.publisher = Publisher(
            api,
            driver=DRIVER_NAME,
            node_name=settings.node_name,
            on_state=partial(readiness.set, "slices"),
            leads=instance.check_lead,
        )
        self.stream = HealthStream(pool=settings.node_name, clock=SystemClock())
        self.cards = Cards(
            settings=settings,
            config_file=inputs.config_file,
            config=inputs.config,
            source=inputs.source,
            events=inputs.events,
            stream=self.stream,
            clock=SystemClock(),
            control=NvmlInstances(settings.driver_root),
            ledger=state.ledger,
            boot_id=boot_id,
            alone=instance.alone,
            publish=self.publisher.publish,
            on_cards=self._note_cards,
            on_state=partial(readiness.set, "nvml"),
            on_rules=self._note_rules,
        )
        offer = self.cards.offer
        self.cordon = CordonWatch(api, node_name=settings.node_name, on_change=offer.set_cordoned)
        preparer = Preparer(
            api=api,
            ledger=state.ledger,
            files=files,
            offers=offer.offers,
            boot_id=boot_id,
            settings=settings,
            executor=executor,
            locks=locks,
            partitions=self.cards.partitions,
            disk=state.disk,
            step=step,
        )
        self.watch = ClaimWatch(
            api=api,
            ledger=state.ledger,
            preparer=preparer,
            locks=locks,
            clock=SystemClock(),
            interval_seconds=settings.claim_poll_seconds,
            leads=instance.check_lead,
            on_missing=self._note_missing,
            driver_holds=self._find_holds,
            on_held=self._note_held,
        )
        self.driver_limits = DriverLimits(
            inputs.memory_limits,
            inputs.processes,
            self.watch.held,
            cgroups=settings.cgroups,
            backend=lambda: offer.rules.memory_backend,
            context_mib=settings.audit_context_mib,
            on_change=self.watch.look_again,
            leads=instance.check_lead,
        )
        self.audit = EnforcementAudit(
            inputs.processes,
            self.watch.held,
            events=PodEvents(api, SystemClock(), reporter=f"{FIELD_MANAGER}-node"),
            api=api,
            interval_seconds=settings.audit_seconds,
            context_mib=settings.audit_context_mib,
            evict=settings.audit_evict,
            leads=instance.check_lead,
        )
        self.gates = Gates(SystemClock())
        self.arbitration = Arbitration(
            inputs.processes,
            self.watch.held,
            directories=files.directories,
            files=executor,
            locks=locks,
            gates=self.gates,
            leads=instance.check_lead,
            clock=SystemClock(),
        )
        self.recovery = Recovery(
            ledger=state.ledger,
            files=files,
            preparer=preparer,
            locks=locks,
            boot_id=boot_id,
            executor=executor,
            on_cdi=partial(readiness.set, "cdi-dir"),
            on_state=partial(readiness.set, "state-dir"),
            clock=SystemClock(),
            leads=instance.check_lead,
            alone=instance.alone,
            sweep_more=partial(sweep_sockets, settings.kubelet_dir, DRIVER_NAME, sockets),
            has_seen=self.watch.has_seen,
            on_repair=self.arbitration.refresh,
        )
        self.service = DraService(
            socket=sockets.service,
            handler=Lulls(FollowedClaims(preparer, self.watch), give_back),
            locks=locks,
            budget_seconds=settings.prepare_budget_seconds,
            beside=self.stream.services(),
        )
        self.registration = Registration(
            socket=sockets.registration,
            driver=DRIVER_NAME,
            endpoint=sockets.service,
            versions=(*VERSIONS, *healthstream.VERSIONS),
            on_status=self._note_registration,
        )
        self.metrics = NodeMetrics(
            self.service.statistics,
            self.publisher.statistics,
            inputs.config_file.statistics,
            self.cards.health.statistics,
        )
        self.claim_metrics = ClaimMetrics(
            self.watch.statistics,
            self.audit.statistics if settings.audit_seconds else None,
            self.driver_limits.count,
        )

    async def recover(self) -> RecoveryReport:
        """Bring everything into order before anybody calls, or hears of the cards.

        Raises:
            RetryError: The ledger cannot be used at the moment.
        """
        report = await self.recovery.start()
        await self.cards.partitions.refresh()
        return report

    async def serve(self, supervisor: Supervisor) -> None:
        """Serve the kubelet until the process is asked to stop."""
        settings, instance = self._settings, self._state.instance
        self.cards.spawn(supervisor)
        supervisor.spawn("publisher", self.publisher.run())
        supervisor.spawn("cordon", self.cordon.run())
        supervisor.spawn("claims", self.watch.run())
        if settings.audit_seconds:
            supervisor.spawn("audit", self.audit.run())
        supervisor.spawn("arbitration", self.arbitration.run())
        supervisor.spawn("driver-limits", self.driver_limits.run())
        supervisor.spawn("gates", self.gates.run())
        supervisor.spawn("repair", self.recovery.repair_forever(settings.repair_seconds))
        supervisor.spawn("sweep", self.recovery.sweep_forever())
        if instance.name:
            supervisor.spawn("lead", follow_lead(instance, self._note_lead))
        try:
            await self.service.start()
            await self.registration.start()
            keep_what_is_there()
            _log.info("node.serving", node=settings.node_name, instance=instance.number)
            await supervisor.wait()
        finally:
            instance.set_registered(registered=False)
            await self.registration.stop()
            self.stream.close()
            await self.service.stop(settings.drain_seconds)

    def _note_registration(self, reason: str | None) -> None:
        self._readiness.set("registered", reason)
        self._state.instance.set_registered(registered=reason is None)
        self.publisher.refresh()

    def _note_cards(self, lost: frozenset[str]) -> None:
        self.watch.set_lost(lost)
        self._state.executor.submit(_try_to_write_cards, self._state.files, self.cards.inventory)

    def _note_missing(self) -> None:
        self.recovery.note_missing()  # which is made later

    def _note_rules(self) -> None:
        self.driver_limits.refresh()  # which is made later

    def _note_held(self) -> None:
        self.arbitration.refresh()  # which is made later

    def _find_holds(self, uid: str) -> Mapping[str, DriverHold] | None:
        return self.driver_limits.holds(uid)

    def _note_lead(self, _: bool) -> None:  # noqa: FBT001 - as `follow_lead` calls it
        self.publisher.refresh()
        self.watch.refresh()
        self.arbitration.refresh()


async def _persist(
    work: Callable[[], Awaitable[T]], supervisor: Supervisor, note: Callable[[str | None], None]
) -> T | None:
    """Do work on the disk until it succeeds; ``None`` if the process is asked to stop first.

    A disk that is full or read-only is a matter of minutes or of a person: ending the process
    would only hide the reason in a loop of restarts.
    """
    delay, longest = _BACKOFF_SECONDS
    while not supervisor.stopping.is_set():
        try:
            done = await work()
        except RetryError as error:
            _log.warning("node.waits", error=str(error), delay_seconds=delay)
            note(str(error))
        else:
            note(None)
            return done
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await supervisor.stopping.wait()
        delay = min(delay * 2, longest)
    return None


def _try_to_write_cards(files: ClaimFiles, inventory: Inventory) -> None:
    """Write the node-wide card file early; Prepare writes it as well and then reports errors."""
    try:
        files.base.write_cards(inventory.gpus())
    except HamiDraError as error:
        _log.warning("cdi.cards_not_written", error=str(error))


async def _open_state(settings: NodeSettings, stack: AsyncExitStack) -> _State:
    """Open everything on the disk, to be closed by the stack.

    Raises:
        FatalError: Another instance must be alone, or libvgpu cannot be read.
        RetryError: The disk cannot be used at the moment.
    """
    instance = stack.enter_context(Instance.join(settings.state_dir, pod_uid=settings.pod_uid))
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="files")
    stack.callback(executor.shutdown)
    waiting = ThreadPoolExecutor(max_workers=_DISK_THREADS, thread_name_prefix="disk")
    stack.callback(waiting.shutdown)
    root = DriverRoot(
        settings.driver_root,
        settings.host_driver_root or settings.driver_root,
        sysfs=settings.sysfs,
    )
    store = CdiStore(settings.cdi_dir, prefix=FILE_PREFIX)
    specs = HostSpecs((*settings.cdi_search_dirs, settings.cdi_dir), ignored_prefix=FILE_PREFIX)
    directories = ShareDirectories(settings.state_dir)
    installed = await asyncio.get_running_loop().run_in_executor(
        executor, install_library, settings.libvgpu, settings.state_dir
    )
    ledger = await Ledger.open(
        settings.state_dir / "ledger.db",
        copies=partial(read_copies, directories, store),
        alone=lambda: not instance.peers(),
        executor=executor,
    )
    stack.push_async_callback(ledger.close)
    files = ClaimFiles(
        store=store,
        directories=directories,
        base=BaseDevices(root, specs, store),
        installed=installed,
        settings=settings,
    )
    return _State(instance, ledger, files, executor, Disk(waiting, _DISK_THREADS))
