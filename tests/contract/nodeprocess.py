"""The node plugin as a process of its own, between a fake kubelet and a fake API server."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.objects import NODES
from hami_dra.node.ledger import Ledger
from hami_dra.policy.devices import name_device
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.simgpu import A100, DriverRoot, create_driver_root

REPOSITORY: Final = Path(__file__).parents[2]
BUILD: Final = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
NODE: Final = "node-1"
CARD: Final = A100
_END_SECONDS: Final = 90.0


@dataclass
class Place:
    """A node's directories, which outlive its processes."""

    base: Path
    driver: DriverRoot
    cluster: FakeCluster
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def make(cls, base: Path, cluster: FakeCluster) -> AsyncIterator[Self]:
        """Lay a node out; nothing of it runs when the block ends."""
        await cluster.put(NODES, {"metadata": {"name": NODE, "uid": "node-uid"}})
        (base / "kubeconfig").write_text(
            f"{{clusters: [{{name: c, cluster: {{server: '{cluster.url}'}}}}], "
            "users: [{name: u, user: {token: t}}], current-context: x, "
            "contexts: [{name: x, context: {cluster: c, user: u}}]}"
        )
        place = cls(base, create_driver_root(base / "driver", (CARD,), BUILD), cluster)
        try:
            yield place
        finally:
            for process in place.running:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    @property
    def kubelet_dir(self) -> Path:
        """Where the sockets go."""
        return self.base / "kubelet"

    async def start(
        self,
        *,
        program: Sequence[str] = ("hami_dra", "node"),
        pod_uid: str = "",
        options: Sequence[str] = (),
    ) -> asyncio.subprocess.Process:
        """Start the plugin, as a module with its arguments; does not wait for it."""
        base = self.base
        arguments = [
            "--node-name", NODE,
            "--pod-uid", pod_uid,
            "--kubeconfig", str(base / "kubeconfig"),
            "--kubelet-dir", str(self.kubelet_dir),
            "--cdi-dir", str(base / "cdi"),
            "--state-dir", str(base / "state"),
            "--driver-root", str(self.driver.root),
            "--sysfs", str(self.driver.sysfs_dir),
            "--procfs", str(self.driver.procfs_dir),
            "--libvgpu", str(BUILD / "src" / "libvgpu.so"),
            "--health-listen", "127.0.0.1:0",
            "--prepare-budget-seconds", "2",
            *options,
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *program, *arguments, env=os.environ | self.driver.environment()
        )
        self.running.append(process)
        return process

    async def stop(self, process: asyncio.subprocess.Process) -> None:
        """End a process as the kubelet ends its container, and require that it ends well."""
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_END_SECONDS):
            assert await process.wait() == 0

    async def leftovers(self) -> list[str]:
        """Return everything on the disk that belongs to a claim, or to a write that was cut."""
        base = self.base
        found = [
            *(base / "cdi").glob("*-claim-*"),
            *(base / "state" / "claims").glob("*"),
            *base.joinpath("cdi").glob(".*.tmp"),
            *base.joinpath("state").rglob("*.tmp"),
        ]
        ledger = await Ledger.open(base / "state" / "ledger.db")
        rows = [record.binding.claim_uid for record in await ledger.records()]
        await ledger.close()
        return [str(path.relative_to(base)) for path in found] + rows


def make_claim(name: str, memory_mib: int) -> dict[str, Any]:
    """Return a claim that has a share of the card."""
    result = {
        "request": "gpu",
        "driver": DRIVER_NAME,
        "pool": NODE,
        "device": name_device(CARD.uuid),
        "shareID": "00000001-0000-4000-8000-000000000000",
        "consumedCapacity": {"memory": f"{memory_mib}Mi", "cores": "0", "slots": "1"},
    }
    return {
        "metadata": {"namespace": "team", "name": name, "uid": f"uid-{name}"},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }
