"""A node with everything real below it but the kernel's devices and the API server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.gpu.mig import InstanceControl
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.basedevices import BaseDevices
from hami_dra.node.claimspec import FILE_PREFIX
from hami_dra.node.copies import read_copies
from hami_dra.node.ledger import Ledger
from hami_dra.node.libfile import install_library
from hami_dra.node.partitions import Partitions
from hami_dra.node.preparer import ClaimFiles, Preparer, Step, no_step
from hami_dra.node.recovery import Recovery
from hami_dra.node.settings import NodeSettings
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.devices import GpuFacts, name_device, offer_whole
from hami_dra.service.clock import Clock, SystemClock
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import FakeInstances
from tests.unit.cdi.driverroots import ELF_LIBRARY

NODE = "node-1"
LIBRARY_DIRECTORY = "usr/lib64"


def make_driver_root(root: Path, *minors: int, version: str = "580.95.05") -> Path:
    """Lay out a driver: libraries with links, and device nodes (links to /dev/null)."""
    libraries = root / LIBRARY_DIRECTORY
    libraries.mkdir(parents=True)
    for stem in ("libcuda", "libnvidia-ml"):
        (libraries / f"{stem}.so.{version}").write_bytes(ELF_LIBRARY)
        (libraries / f"{stem}.so.1").symlink_to(f"{stem}.so.{version}")
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{minor}" for minor in minors)):
        (root / "dev" / name).symlink_to("/dev/null")
    return root


def make_settings(base: Path, **changes: Any) -> NodeSettings:
    """Return settings below a directory, with a driver root and a library made there."""
    root = base / "driver"
    if not root.exists():
        make_driver_root(root, 0, 1)
        (base / "libvgpu.so").write_bytes(b"\x7fELF library")
    options: dict[str, Any] = {
        "node_name": NODE,
        "kubelet_dir": base / "kubelet",
        "cdi_dir": base / "cdi",
        "cdi_search_dirs": (base / "etc-cdi",),
        "state_dir": base / "state",
        "driver_root": root,
        "libvgpu": base / "libvgpu.so",
        "health_host": "127.0.0.1",
        "health_port": 0,
        "prepare_budget_seconds": 0.0,
    }
    return NodeSettings(**options | changes)


def make_claim(name: str, *results: dict[str, Any], uid: str = "") -> dict[str, Any]:
    """Return an allocated claim."""
    return {
        "metadata": {"namespace": "team", "name": name, "uid": uid or f"uid-{name}"},
        "status": {"allocation": {"devices": {"results": list(results)}}},
    }


def make_share(
    number: int = 0, *, share: int = 1, memory_mib: int = 3000, cores: int = 30, **changes: Any
) -> dict[str, Any]:
    """Return one result of an allocation: a share of a card."""
    result = {
        "request": "gpu",
        "driver": DRIVER_NAME,
        "pool": NODE,
        "device": name_device(make_gpu(number).uuid),
        "shareID": f"{share:08x}-0000-4000-8000-000000000000",
        "consumedCapacity": {"memory": f"{memory_mib}Mi", "cores": str(cores), "slots": "1"},
    }
    return {key: value for key, value in (result | changes).items() if value is not None}


def refer(claim: dict[str, Any]) -> ClaimRef:
    """Return a claim as the kubelet names it."""
    metadata = claim["metadata"]
    return ClaimRef(metadata["namespace"], metadata["name"], metadata["uid"])


@dataclass
class Rig:
    """One life of a node process: what it opened, until it ends or is killed."""

    settings: NodeSettings
    cluster: FakeCluster
    ledger: Ledger
    files: ClaimFiles
    preparer: Preparer
    recovery: Recovery
    locks: ClaimLocks
    gpus: dict[str, GpuFacts]
    cdi_state: list[str | None]
    partitions: Partitions

    def cdi_files(self) -> dict[str, Any]:
        """Return the CDI files by name."""
        directory = self.settings.cdi_dir
        return {
            path.name: msgspec.json.decode(path.read_bytes())
            for path in sorted(directory.glob("*.json"))
        }

    def claim_files(self) -> list[str]:
        """Return the names of the CDI files of claims."""
        return [name for name in self.cdi_files() if "-claim-" in name]

    def claim_directories(self) -> list[str]:
        """Return the UIDs that have a directory."""
        return self.files.directories.uids()


@asynccontextmanager
async def start_rig(
    base: Path,
    cluster: FakeCluster,
    *,
    step: Step = no_step,
    boot_id: str = "boot-1",
    control: InstanceControl | None = None,
    clock: Clock | None = None,
    has_seen: Callable[[str], bool] = lambda _: False,
    on_repair: Callable[[], None] = lambda: None,
    **changes: Any,
) -> AsyncIterator[Rig]:
    """Open a node's rooms on a directory; opening it twice in turn is a restart.

    Args:
        base: The directory.
        cluster: The API server.
        step: See `Preparer`.
        boot_id: Another one is a reboot.
        control: Divides cards; `NodeSettings.mig_dynamic` says which.
        clock: Of the repair.
        has_seen: See `Recovery`.
        on_repair: See `Recovery`.
        changes: Settings.
    """
    settings = make_settings(base, **changes)
    executor = ThreadPoolExecutor(max_workers=1)
    store = CdiStore(settings.cdi_dir, prefix=FILE_PREFIX)
    specs = HostSpecs((*settings.cdi_search_dirs, settings.cdi_dir), ignored_prefix=FILE_PREFIX)
    root = DriverRoot(settings.driver_root, settings.driver_root)
    directories = ShareDirectories(settings.state_dir)
    ledger = await Ledger.open(
        settings.state_dir / "ledger.db",
        copies=partial(read_copies, directories, store),
        executor=executor,
    )
    files = ClaimFiles(
        store=store,
        directories=directories,
        base=BaseDevices(root, specs, store),
        installed=await asyncio.to_thread(install_library, settings.libvgpu, settings.state_dir),
        settings=settings,
    )
    gpus = {name_device(gpu.uuid): gpu for gpu in (make_gpu(0), make_gpu(1, memory_mib=16384))}
    locks = ClaimLocks(settings.state_dir / "claims.lock")
    partitions = Partitions(
        control or FakeInstances(),
        ledger,
        chosen=lambda: settings.mig_dynamic,
        boot_id=boot_id,
        clock=SystemClock(),
    )
    preparer = Preparer(
        api=cluster.api(),
        ledger=ledger,
        files=files,
        offers=lambda: {name: offer_whole(gpu, split_count=10) for name, gpu in gpus.items()},
        boot_id=boot_id,
        settings=settings,
        executor=executor,
        locks=locks,
        partitions=partitions,
        step=step,
    )
    cdi_state: list[str | None] = []
    recovery = Recovery(
        ledger=ledger,
        files=files,
        preparer=preparer,
        locks=locks,
        boot_id=boot_id,
        executor=executor,
        on_cdi=cdi_state.append,
        on_state=lambda _: None,
        clock=clock or SystemClock(),
        has_seen=has_seen,
        on_repair=on_repair,
    )
    try:
        yield Rig(
            settings, cluster, ledger, files, preparer, recovery, locks, gpus, cdi_state, partitions
        )
    finally:
        await ledger.close()
        executor.shutdown()


async def put_claim(cluster: FakeCluster, claim: dict[str, Any]) -> ClaimRef:
    """Store a claim in the API server and return its reference."""
    stored = await cluster.put(CLAIMS, claim)
    return refer(stored)
