"""The node process: what is opened in which order, and closed in the reverse one.

Start: (1) settings, one instance per state directory; (2) libvgpu on the host, ledger; (3) repair
of CDI files and leftovers, before anybody can call; (4) health endpoints; (5) DRA socket; (6)
registration socket, so that the kubelet finds a service behind it; (7) slices follow the cards.

Stop: (1) registration socket away, which deregisters; (2) running calls end within the drain time,
then the DRA socket goes; (3) background tasks; (4) ledger. Slices stay: the kubelet removes them
if no plugin comes back within 30 s, and a restart inside that time goes unnoticed.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import FatalError, HamiDraError
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.gpu.events import NvmlEvents
from hami_dra.gpu.nvml import NvmlSource
from hami_dra.gpu.source import EventSource, GpuSource
from hami_dra.kube import Api, connect
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.publisher import Publisher
from hami_dra.kubeletplugin.registration import Registration
from hami_dra.kubeletplugin.service import VERSIONS, DraService
from hami_dra.node import healthstream
from hami_dra.node.basedevices import BaseDevices
from hami_dra.node.cards import Cards
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.node.configfile import ConfigFile
from hami_dra.node.cordon import CordonWatch
from hami_dra.node.healthstream import HealthStream
from hami_dra.node.inventory import Inventory
from hami_dra.node.ledger import Ledger
from hami_dra.node.libfile import install_library
from hami_dra.node.metrics import NodeMetrics
from hami_dra.node.preparer import ClaimFiles, Preparer, Step, no_step, read_boot_id
from hami_dra.node.recovery import Recovery
from hami_dra.node.settings import NodeSettings
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.service.clock import SystemClock
from hami_dra.service.http import Readiness, serve_health
from hami_dra.service.supervise import Supervisor

_log = structlog.get_logger(__name__)

CONDITIONS: Final = ("nvml", "slices", "registered", "cdi-dir")


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
    readiness = Readiness(*CONDITIONS)
    with _only_instance(settings.state_dir):
        async with (
            connect(settings.kubeconfig) as session,
            _open_ledger(settings) as ledger,
            _open_files(settings) as disk,
            Supervisor() as supervisor,
        ):
            if source is None:
                nvml = NvmlSource(settings.driver_root, sysfs=settings.sysfs)
                source, events = nvml, events or NvmlEvents(nvml.library)
            gpus = source, events
            await _serve(settings, Api(session), ledger, disk, supervisor, readiness, gpus, step)


async def _serve(  # noqa: PLR0917 - what run_node opened, handed on once
    settings: NodeSettings,
    api: Api,
    ledger: Ledger,
    disk: tuple[ClaimFiles, ThreadPoolExecutor],
    supervisor: Supervisor,
    readiness: Readiness,
    gpus: tuple[GpuSource, EventSource | None],
    step: Step,
) -> None:
    files, executor = disk
    boot_id = read_boot_id()
    locks = ClaimLocks()
    publisher = Publisher(
        api,
        driver=DRIVER_NAME,
        node_name=settings.node_name,
        on_state=partial(readiness.set, "slices"),
    )

    def write_cards() -> None:
        executor.submit(_write_cards, files, cards.inventory)

    stream = HealthStream(pool=settings.node_name, clock=SystemClock())
    config_file = ConfigFile(settings.config)
    cards = Cards(
        settings=settings,
        config_file=config_file,
        config=await asyncio.get_running_loop().run_in_executor(executor, config_file.read),
        source=gpus[0],
        events=gpus[1],
        stream=stream,
        clock=SystemClock(),
        publish=publisher.publish,
        on_cards=write_cards,
        on_state=partial(readiness.set, "nvml"),
    )
    cordon = CordonWatch(api, node_name=settings.node_name, on_change=cards.offer.set_cordoned)
    preparer = Preparer(
        api=api,
        ledger=ledger,
        files=files,
        offers=cards.offer.offers,
        boot_id=boot_id,
        settings=settings,
        executor=executor,
        step=step,
    )
    recovery = Recovery(
        ledger=ledger,
        files=files,
        preparer=preparer,
        locks=locks,
        boot_id=boot_id,
        executor=executor,
        on_cdi=partial(readiness.set, "cdi-dir"),
    )
    await recovery.start()

    def note_registration(reason: str | None) -> None:
        readiness.set("registered", reason)
        publisher.refresh()

    service = DraService(
        socket=settings.plugin_socket,
        handler=preparer,
        locks=locks,
        budget_seconds=settings.prepare_budget_seconds,
        beside=stream.services(),
    )
    registration = Registration(
        socket=settings.registration_socket,
        driver=DRIVER_NAME,
        endpoint=settings.plugin_socket,
        versions=(*VERSIONS, *healthstream.VERSIONS),
        on_status=note_registration,
    )
    metrics = NodeMetrics(
        service.statistics,
        publisher.statistics,
        config_file.statistics,
        cards.health.statistics,
    )
    async with serve_health(
        settings.health_host, settings.health_port, readiness, metrics.registry
    ) as port:
        cards.spawn(supervisor)
        supervisor.spawn("publisher", publisher.run())
        supervisor.spawn("cordon", cordon.run())
        supervisor.spawn("repair", recovery.repair_forever(settings.repair_seconds))
        supervisor.spawn("sweep", recovery.sweep_forever())
        try:
            await service.start()
            await registration.start()
            _log.info("node.serving", node=settings.node_name, health_port=port)
            await supervisor.wait()
        finally:
            await registration.stop()
            stream.close()
            await service.stop(settings.drain_seconds)


def _write_cards(files: ClaimFiles, inventory: Inventory) -> None:
    """Write the node-wide card file early; Prepare writes it as well and then reports errors."""
    try:
        files.base.write_cards(inventory.gpus())
    except HamiDraError as error:
        _log.warning("cdi.cards_not_written", error=str(error))


@asynccontextmanager
async def _open_ledger(settings: NodeSettings) -> AsyncIterator[Ledger]:
    ledger = await Ledger.open(settings.state_dir / "ledger.db")
    try:
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def _open_files(
    settings: NodeSettings,
) -> AsyncIterator[tuple[ClaimFiles, ThreadPoolExecutor]]:
    """Make everything that touches the disk, and the one thread that does."""
    root = DriverRoot(
        settings.driver_root,
        settings.host_driver_root or settings.driver_root,
        sysfs=settings.sysfs,
    )
    store = CdiStore(settings.cdi_dir, prefix=FILE_PREFIX)
    specs = HostSpecs((*settings.cdi_search_dirs, settings.cdi_dir), ignored_prefix=FILE_PREFIX)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="files")
    try:
        installed = await asyncio.get_running_loop().run_in_executor(
            executor, install_library, settings.libvgpu, settings.state_dir
        )
        files = ClaimFiles(
            store=store,
            directories=ShareDirectories(settings.state_dir),
            base=BaseDevices(root, specs, store),
            installed=installed,
            settings=settings,
        )
        yield files, executor
    finally:
        executor.shutdown()


@contextmanager
def _only_instance(state_dir: Path) -> Iterator[None]:
    """Hold the state directory's lock; the kernel drops it however the process ends."""
    path = state_dir / "lock"
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FatalError(f"--state-dir {state_dir} is not usable: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FatalError(
            f"another node process uses {state_dir}; only one instance may run on a node"
        ) from error
    else:
        yield
    finally:
        os.close(descriptor)
