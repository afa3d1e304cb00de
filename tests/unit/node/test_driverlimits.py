"""The driver's limits on containers that come and go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.memorylimits import CardBackend, NoLimitsError
from hami_dra.gpu.processes import CardProcess
from hami_dra.node.containergroups import find_container_groups
from hami_dra.node.driverlimits import DriverLimits
from hami_dra.policy.audit import HeldClaim, Pod
from hami_dra.policy.cgroups import ContainerPlace
from tests.unit.policy.test_audit import CARD, hold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hami_dra.contract.nodeconfig import MemoryBackend
    from hami_dra.policy.driverlimits import DriverHold

MIB = 1 << 20
UID, OTHER = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
A = Pod("team", "a", UID)
FIRST, SECOND = "a" * 64, "b" * 64


class Driver:
    """Holds limits, and says of processes what it is told to."""

    def __init__(self) -> None:
        self.backend = CardBackend(CARD, "dmem")
        self.set: dict[tuple[str, str], int | None] = {}
        self.calls = 0
        self.fault: Exception | None = None
        self.blind = False
        self.processes = 0

    async def find_backends(self) -> tuple[CardBackend, ...]:
        """See `DriverMemoryLimits`."""
        if self.blind:
            raise RetryError("NVML does not initialise")
        return (self.backend,)

    async def set_limit(
        self, uuid: str, group: Path, *, hard_bytes: int | None, soft_bytes: int = 0
    ) -> None:
        """See `DriverMemoryLimits`."""
        assert soft_bytes == 0
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        if not group.exists():  # noqa: ASYNC240 - a folder of the test's
            raise RetryError(f"control group {group} is gone")
        self.set[uuid, group.name] = hard_bytes

    async def list_processes(self, *, busy: bool = False) -> tuple[CardProcess, ...]:
        """See `ProcessSource`."""
        assert not busy
        place = ContainerPlace(UID, FIRST)
        return tuple(CardProcess(CARD, pid, 0, place) for pid in range(self.processes))


class Node:
    """A node with a pod whose groups are folders."""

    def __init__(self, cgroups: Path) -> None:
        self.cgroups = cgroups
        self.driver = Driver()
        self.held: list[HeldClaim] = [hold("job", A)]
        self.backend: MemoryBackend = "driver"
        self.told: list[str] = []
        self.changed = asyncio.Event()
        self.leads = True
        self.limits = self.start()

    def start(self) -> DriverLimits:
        """Return a process that knows nothing yet."""
        return DriverLimits(
            self.driver,
            self.driver,
            lambda: self.held,
            cgroups=self.cgroups,
            backend=lambda: self.backend,
            context_mib=100,
            on_change=self._note,
            leads=self._check_lead,
        )

    def _note(self, claim_uid: str) -> None:
        self.told.append(claim_uid)
        self.changed.set()

    async def _check_lead(self) -> bool:
        return self.leads

    def run(self, container: str, pod: str = UID) -> Path:
        """Make a container's group."""
        group = self.cgroups / "kubepods.slice/kubepods-burstable.slice"
        group /= (
            f"kubepods-burstable-pod{pod.replace('-', '_')}.slice/cri-containerd-{container}.scope"
        )
        group.mkdir(parents=True)
        return group

    def reason(self) -> str | None:
        """Return what is said of the claim."""
        hold = self.said().get(CARD)
        return None if hold is None else hold.reason

    def said(self) -> Mapping[str, DriverHold]:
        """Return all that is."""
        holds = self.limits.holds("claim-job")
        assert holds is not None
        return holds


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def scope(container: str) -> tuple[str, str]:
    return CARD, f"cri-containerd-{container}.scope"


async def test_a_container_is_limited_when_its_group_is_there(node: Node) -> None:
    await node.limits.look()
    assert (node.driver.set, node.reason()) == ({}, "NoContainer")
    node.run(FIRST)
    node.run(SECOND, pod=OTHER)
    await node.limits.look()

    assert node.driver.set == {scope(FIRST): 3100 * MIB}
    assert node.said()[CARD].holds
    assert node.limits.count() == {CARD: 1}
    assert node.told == ["claim-job", "claim-job"]
    node.driver.processes = 2
    await node.limits.look()
    await node.limits.look()
    assert node.driver.set == {scope(FIRST): 3300 * MIB}
    assert (node.driver.calls, len(node.told)) == (2, 2)


async def test_a_driver_that_forgets_and_a_process_that_starts_anew_have_it_set_again(
    node: Node,
) -> None:
    node.run(FIRST)
    await node.limits.look()
    node.driver.set.clear()
    for _ in range(30):
        await node.limits.look()
    assert node.driver.set == {scope(FIRST): 3100 * MIB}
    node.driver.set.clear()
    node.limits = node.start()
    await node.limits.look()

    assert node.driver.set == {scope(FIRST): 3100 * MIB}


async def test_a_process_that_starts_anew_says_nothing_before_it_has_looked(node: Node) -> None:
    assert node.limits.holds("claim-job") is None
    node.backend = "auto"
    node.driver.backend = CardBackend(CARD, None, "an old driver")
    await node.limits.look()

    assert node.limits.holds("claim-job") == {}
    assert node.told == ["claim-job"]
    assert node.limits.holds("another") is None
    node.backend = "hooks"
    assert node.limits.holds("another") == {}


@pytest.mark.parametrize("end", ["claim", "setting"])
async def test_what_is_wanted_no_more_is_lifted(node: Node, end: str) -> None:
    node.run(FIRST)
    await node.limits.look()
    if end == "claim":
        node.held = []
    else:
        node.backend = "hooks"
    await node.limits.look()

    assert node.driver.set == {scope(FIRST): None}
    assert not node.limits.holds("claim-job")
    assert node.limits.count() == {}
    calls = node.driver.calls
    await node.limits.look()
    assert node.driver.calls == calls


async def test_a_container_that_ended_leaves_nothing_to_lift(node: Node) -> None:
    node.run(FIRST).rmdir()
    group = node.run(SECOND)
    await node.limits.look()
    group.rmdir()
    await node.limits.look()
    assert (node.driver.calls, node.reason()) == (2, "NoContainer")
    await node.limits.look()

    assert node.driver.calls == 2


async def test_an_old_driver_is_told_where_an_operator_relies_on_it(node: Node) -> None:
    node.run(FIRST)
    node.driver.backend = CardBackend(CARD, None, "driver 580 is older than 615")
    await node.limits.look()
    assert (node.reason(), node.driver.calls) == ("Unsupported", 0)
    node.backend = "auto"
    await node.limits.look()

    assert node.reason() is None


async def test_a_refusal_is_told_and_tried_again(node: Node) -> None:
    node.run(FIRST)
    node.driver.fault = NoLimitsError("for root to set")
    await node.limits.look()
    hold = node.said()[CARD]
    assert (hold.holds, hold.reason, hold.message) == (False, "Refused", "for root to set")
    node.driver.fault = None
    await node.limits.look()

    assert node.reason() == "Held"


async def test_a_driver_that_does_not_answer_is_told_until_it_does(node: Node) -> None:
    node.run(FIRST)
    node.driver.blind = True
    await node.limits.look()
    assert node.reason() == "Unknown"
    node.driver.blind = False
    await node.limits.look()

    assert node.reason() == "Held"


async def test_where_nobody_wants_limits_nothing_is_looked_at_until_somebody_does(
    node: Node,
) -> None:
    node.backend = "hooks"
    group = node.run(FIRST)
    running = asyncio.create_task(node.limits.run())
    async with asyncio.timeout(8):  # of the ten seconds until it looks anyway
        await asyncio.sleep(0)
        assert node.driver.calls == 0
        node.backend = "driver"
        node.limits.refresh()
        await node.changed.wait()
        assert node.driver.set[CARD, group.name] is not None

        node.changed.clear()
        node.backend = "hooks"
        await node.changed.wait()
        assert node.driver.set[CARD, group.name] is None, "what was set is lifted"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_who_does_not_lead_sets_nothing_and_by_default_nobody_does(node: Node) -> None:
    node.run(FIRST)
    node.leads = False
    await node.limits.look()
    node.leads, node.backend = True, "hooks"
    await node.limits.look()

    assert (node.driver.calls, node.told) == (0, [])


def test_groups_that_a_container_makes_are_its_own(tmp_path: Path) -> None:
    mine = tmp_path / f"kubelet/kubepods/besteffort/pod{UID}/{FIRST}"
    (mine / f"pod{OTHER}" / SECOND).mkdir(parents=True)
    (tmp_path / "system.slice/ssh.service").mkdir(parents=True)
    (mine.parent / "not-a-container").mkdir()

    assert find_container_groups(tmp_path, {UID, OTHER}) == {mine: UID}
    assert find_container_groups(tmp_path, set()) == {}
    assert find_container_groups(tmp_path / "nowhere", {UID}) == {}
