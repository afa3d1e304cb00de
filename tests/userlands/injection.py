"""A claim as the node prepares it, and what its CDI files put into a container."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hami_dra.node.settings import InjectPath
from hami_dra.policy.devices import name_device
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.simgpu import A100, create_driver_root
from tests.cluster import simcards
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig

MEMORY_MIB: Final = 3000
"""The share of the prepared claim."""


@dataclass(frozen=True, slots=True)
class BindMount:
    """One file or directory of the host in a container."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Injection:
    """What a container gets.

    Attributes:
        mounts: In the order in which they are made.
        environment: Variables that are set.
    """

    mounts: tuple[BindMount, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


NOTHING: Final = Injection()


def prepare_share(base: Path, build: Path, driver_build: Path) -> Injection:
    """Prepare a claim for a share of a simulated card with the node's own code.

    Args:
        base: An empty directory for the node's state; not on overlayfs.
        build: Where libvgpu was built.
        driver_build: Where the simulated driver was built for these userlands.
    """
    return asyncio.run(_prepare(base, build, driver_build))


async def _prepare(base: Path, build: Path, driver_build: Path) -> Injection:
    driver = create_driver_root(base / "driver", (A100,), driver_build)
    gpu = simcards.make_card(A100, 0, uuid=A100.uuid)
    async with (
        FakeCluster() as cluster,
        start_rig(
            base,
            cluster,
            driver_root=driver.root,
            sysfs=driver.sysfs_dir,
            libvgpu=build / "src/libvgpu.so",
            inject_paths=(InjectPath(driver.sim_dir, "/run/vgpu-sim", read_only=False),),
        ) as rig,
    ):
        rig.gpus.clear()
        rig.gpus[name_device(A100.uuid)] = gpu
        share = make_share(memory_mib=MEMORY_MIB, cores=0, device=name_device(A100.uuid))
        ref = await put_claim(cluster, make_claim("share", share))
        prepared = await rig.preparer.prepare(ref)
        ids = [cdi_id for device in prepared for cdi_id in device.cdi_ids]
        return resolve(ids, rig.cdi_files().values())


def resolve(ids: list[str], files: Any) -> Injection:
    """Return the edits of CDI devices, each mount once.

    Raises:
        KeyError: No file has a device of that name.
    """
    devices = {
        f"{file['kind']}={device['name']}": [
            file.get("containerEdits", {}),
            device["containerEdits"],
        ]
        for file in files
        for device in file["devices"]
    }
    edits = [edit for cdi_id in dict.fromkeys(ids) for edit in devices[cdi_id]]
    mounts = {
        mount["containerPath"]: BindMount(
            Path(mount["hostPath"]), mount["containerPath"], "ro" in mount["options"]
        )
        for edit in edits
        for mount in edit.get("mounts", ())
    }
    nodes = {
        node["path"]: BindMount(
            Path(node.get("hostPath", node["path"])), node["path"], read_only=False
        )
        for edit in edits
        for node in edit.get("deviceNodes", ())
    }
    environment = dict(variable.split("=", 1) for edit in edits for variable in edit.get("env", ()))
    return Injection((*nodes.values(), *mounts.values()), tuple(environment.items()))
