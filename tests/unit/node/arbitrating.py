"""An arbitration between a driver that says what it is told and real files."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hami_dra.contract.errors import RetryError
from hami_dra.contract.grant import decode_grant
from hami_dra.contract.region import RegionDevice, RegionView
from hami_dra.gpu.processes import CardProcess
from hami_dra.kubeletplugin.locks import ClaimLocks
from hami_dra.node.arbitration import Arbitration
from hami_dra.node.gates import Gates
from hami_dra.node.regionfile import read_region
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.audit import HeldClaim, Pod
from hami_dra.policy.cgroups import ContainerPlace
from hami_dra.service.clock import ManualClock
from tests.unit.node.test_regionfile import encode_region
from tests.unit.policy.test_audit import CARD, device, hold

MIB = 1 << 20


class Driver:
    """Lists the processes of pods: pod, MiB and percent by pid."""

    def __init__(self) -> None:
        self.processes: dict[int, tuple[str, int, int | None]] = {}
        self.fault = False
        self.asked = 0
        self._news = asyncio.Condition()

    async def wait_for(self, asked: int) -> None:
        """Wait until it was asked so many times."""
        async with self._news:
            await self._news.wait_for(lambda: self.asked >= asked)

    async def list_processes(self, *, busy: bool = False) -> tuple[CardProcess, ...]:
        """See `ProcessSource`."""
        assert busy
        self.asked += 1
        async with self._news:
            self._news.notify_all()
        if self.fault:
            raise RetryError("the driver hangs")
        return tuple(
            CardProcess(
                CARD,
                pid,
                mib * MIB,
                ContainerPlace(f"uid-{pod}", "c" * 64),
                busy_percent=percent,
                inner_pid=pid % 100,
                start_ticks=pid * 10,
            )
            for pid, (pod, mib, percent) in self.processes.items()
        )


class Node:
    """An arbitration with the claims that it is told are held."""

    def __init__(self, state: Path, files: ThreadPoolExecutor) -> None:
        self.driver = Driver()
        self.clock = ManualClock()
        self.directories = ShareDirectories(state)
        self.gates = Gates(self.clock)
        self.held: list[HeldClaim] = []
        self.leads = True
        self.locks = ClaimLocks()
        self.arbitration = Arbitration(
            self.driver,
            lambda: self.held,
            directories=self.directories,
            files=files,
            locks=self.locks,
            gates=self.gates,
            leads=self._leads,
            clock=self.clock,
        )

    async def _leads(self) -> bool:
        return self.leads

    def add(self, name: str, *, slot: tuple[int, int, int] | None = None, **changes: Any) -> None:
        """Prepare a claim of one card for a pod of its name, which has made its region."""
        facts = {"cores_percent": 30, "memory_mib": 1000} | changes
        claim = hold(name, Pod("team", name, f"uid-{name}"), devices=(device(**facts),))
        self.held.append(claim)
        self.directories.ensure(claim.binding)
        region = encode_region(CARD, slots={0: slot} if slot else None)
        (self.directory(name) / "region").write_bytes(region)

    def directory(self, name: str) -> Path:
        """Where a claim's region is."""
        return self.directories.region_path(f"claim-{name}", "gpu")

    async def look(self, times: int = 1) -> None:
        """Look so many times, a second apart."""
        for _ in range(times):
            self.clock.advance(1)
            await self.arbitration.look()

    def step(self, seconds: float = 0.02) -> None:
        """Let the gates look once, after some time."""
        self.clock.advance(seconds)
        self.gates.step()

    def region(self, name: str) -> RegionView:
        """Return what a claim's region says."""
        view = read_region(self.directory(name))
        assert view is not None
        return view

    def card(self, name: str) -> RegionDevice:
        """Return what it says of its card."""
        return self.region(name).devices[0]

    def alone(self, *names: str) -> list[bool]:
        """Return whether grants say so."""
        paths = (self.directories.grant_path(f"claim-{name}", "gpu") for name in names)
        return [decode_grant(path.read_bytes()).devices[0].alone for path in paths]

    def heartbeat(self, name: str) -> int:
        """Return the last one that its grant heard."""
        path = self.directories.grant_path(f"claim-{name}", "gpu")
        return decode_grant(path.read_bytes()).heartbeat

    def launch(self, name: str, busy_ns: int) -> None:
        """Charge GPU time as libvgpu does."""
        with (self.directory(name) / "region").open("r+b") as file:
            for offset in (152, 88):  # all of it for long kernels
                file.seek(256 + offset)
                file.write(busy_ns.to_bytes(8, "little"))

    def answer(self, name: str) -> None:
        """Say that somebody launches, charged or not, as libvgpu does."""
        with (self.directory(name) / "region").open("r+b") as file:
            file.seek(256 + 180)
            assert file.read(4) == (1).to_bytes(4, "little")
            file.seek(256 + 180)
            file.write(bytes(4))


@contextmanager
def making_node(state: Path) -> Iterator[Node]:
    with ThreadPoolExecutor(max_workers=1) as files:
        node = Node(state, files)
        try:
            yield node
        finally:
            node.gates.watch(())
            node.gates.step()
            node.gates.executor.shutdown()
