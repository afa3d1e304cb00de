"""A node's arbitration over real libvgpu and the simulated NVML; run by test_arbitration.py.

In a process of its own: NVML's library is loaded once in a process, and looks at one machine.
Pods are what a /proc of files says: nobody here has a control group of Kubernetes.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hami_dra.contract.grant import decode_grant
from hami_dra.contract.region import RegionView
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.processes import NvmlProcesses
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.node.arbitration import Arbitration
from hami_dra.node.gates import Gates
from hami_dra.node.regionfile import read_region
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.audit import HeldClaim, Pod
from hami_dra.policy.binding import Binding, BoundDevice
from hami_dra.service.clock import SystemClock
from hami_dra.testing.simgpu import A100

CONTEXT_MIB = 50
_UIDS = {name: f"0f2c1d34-5a6b-4c7d-8e9f-01234567890{name}" for name in "ab"}


@dataclass
class Node:
    """A node with one card and the claims of pods a and b."""

    base: Path
    build: Path
    held: list[HeldClaim] = field(default_factory=list)
    programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Open what an arbitration needs."""
        (self.base / "proc").mkdir()
        self.directories = ShareDirectories(self.base / "state")
        self.files = ThreadPoolExecutor(max_workers=1)
        self.gates = Gates(SystemClock())
        library = NvmlLibrary(self.base / "driver")
        self.arbitration = Arbitration(
            NvmlProcesses(library, proc=self.base / "proc"),
            lambda: self.held,
            directories=self.directories,
            files=self.files,
            locks=ClaimLocks(),
            gates=self.gates,
            leads=self._lead,
            clock=SystemClock(),
        )

    async def _lead(self) -> bool:
        return True

    def close(self) -> None:
        """End everything."""
        for program in self.programs:
            program.kill()
            program.wait()
            if program.stdout is not None:
                program.stdout.close()
        self.files.shutdown()
        self.gates.executor.shutdown()

    def claim(self, name: str, memory_mib: int, cores: int) -> None:
        """Prepare a claim for a pod."""
        device = BoundDevice(
            request="gpu",
            pool="node",
            device="gpu-0",
            uuid=A100.uuid,
            minor=0,
            share_id="s",
            memory_mib=memory_mib,
            cores_percent=cores,
            consumed_memory_mib=memory_mib,
            consumed_cores=cores,
            consumed_slots=1,
        )
        binding = Binding(claim_uid=f"claim-{name}", namespace="team", name=name, devices=(device,))
        self.held.append(HeldClaim(binding, frozenset({Pod("team", name, _UIDS[name])})))
        self.directories.ensure(binding)
        mounts = self.base / "mounts" / name
        mounts.mkdir(parents=True)
        grant = self.directories.grant_path(binding.claim_uid, "gpu")
        (mounts / f"{binding.claim_uid}_gpu").symlink_to(grant.parent)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Run cuprobe in a pod."""
        program = subprocess.Popen(  # noqa: S603 - built here
            [self.build / "probe/cuprobe", *arguments],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(self.build / "sim"),
                "LD_PRELOAD": str(self.build / "src/libvgpu-test.so"),
                "VGPU_GRANT_ROOT": str(self.base / "mounts" / name),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        self.programs.append(program)
        place = self.base / "proc" / str(program.pid)
        place.mkdir()
        (place / "cgroup").write_text(f"0::/kubepods/pod{_UIDS[name]}/{name * 64}\n")
        for file in ("status", "stat"):
            (place / file).symlink_to(f"/proc/{program.pid}/{file}")
        return program

    def finish(self, name: str, *arguments: str) -> str:
        """Run cuprobe in a pod until it ends; return what it said."""
        return self.start(name, *arguments).communicate(timeout=60)[0]

    def region(self, name: str) -> RegionView | None:
        """Return what a claim's region says."""
        return read_region(self.directories.region_path(f"claim-{name}", "gpu"))

    def alone(self, name: str) -> bool:
        """Return what a claim's grant says."""
        path = self.directories.grant_path(f"claim-{name}", "gpu")
        return decode_grant(path.read_bytes()).devices[0].alone

    async def until(self, done: Callable[[], bool]) -> None:
        """Look about every second until something is so."""
        async with asyncio.timeout(30):
            while not done():
                await self.arbitration.look()
                await asyncio.sleep(0.5)


async def memory(node: Node) -> dict[str, object]:
    """Tell the driver's part, and what is left beside it."""
    node.claim("a", 1000, 0)
    holder = node.start("a", "hold", "600")

    def told() -> bool:
        view = node.region("a")
        return view is not None and view.devices[0].overhead_bytes > 0

    await node.until(told)
    view = node.region("a")
    assert view is not None
    said = {
        "overhead_mib": view.devices[0].overhead_bytes >> 20,
        "host_pids": [process.host_pid == holder.pid for process in view.processes],
        "fits": node.finish("a", "alloc", "350", "1"),
    }
    holder.terminate()
    holder.wait()
    await node.until(lambda: not told())
    return said


async def compute(node: Node) -> dict[str, object]:
    """Let two work beside each other, then one of them alone."""
    for name, cores in (("a", 30), ("b", 60)):
        node.claim(name, 1000, cores)
    await node.until(lambda: node.alone("a") and node.alone("b"))
    first, second = node.start("a", "work", "5000", "18"), node.start("b", "work", "5000", "9")
    await node.until(lambda: not node.alone("a") and not node.alone("b"))
    said: dict[str, object] = {}
    while second.poll() is None:
        await node.arbitration.look()
        await asyncio.sleep(1)
    said["beside"] = second.communicate()[0]
    await node.until(lambda: node.alone("a"))
    while first.poll() is None:
        await node.arbitration.look()
        await asyncio.sleep(1)
    said["first"] = first.communicate()[0]
    figures = {item.share.claim: item.busy_seconds for item in node.arbitration.statistics().shares}
    return said | {"driver_seconds": figures}


async def main(arguments: Sequence[str]) -> None:
    """Play one of the two, and print what was seen."""
    base, build, name = arguments
    node = Node(Path(base), Path(build))
    try:
        print(json.dumps(await {"memory": memory, "compute": compute}[name](node)))  # noqa: T201
    finally:
        node.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
