"""What the node tells programs."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hami_dra.contract.errors import RetryError
from hami_dra.contract.grant import decode_grant
from hami_dra.node.gates import LINGER_SECONDS
from hami_dra.node.regionfile import open_region
from tests.unit.node.arbitrating import MIB, Node, making_node
from tests.unit.node.test_regionfile import encode_region
from tests.unit.policy.test_audit import CARD


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with making_node(tmp_path) as made:
        yield made


async def test_the_drivers_part_of_memory_reaches_the_region(node: Node) -> None:
    node.add("a", slot=(7, 1070, 600 * MIB))
    node.driver.processes = {107: ("a", 1000, 0)}
    await node.look()
    assert node.card("a").overhead_bytes == 0, "one reading may be wrong"
    await node.look()

    assert node.card("a").overhead_bytes == 400 * MIB
    assert node.region("a").processes[0].host_pid == 107
    (figures,) = node.arbitration.statistics().shares
    assert (figures.overhead_bytes, figures.used_bytes) == (400 * MIB, 1000 * MIB)
    node.driver.processes = {}
    await node.look()
    assert node.card("a").overhead_bytes == 0


async def test_a_driver_that_does_not_answer_changes_no_memory_and_lifts_no_limit(
    node: Node,
) -> None:
    node.add("a", slot=(7, 1070, 0))
    node.add("b")
    node.driver.processes = {107: ("a", 300, 0)}
    await node.look(5)
    assert (node.card("a").overhead_bytes, node.alone("a", "b")) == (300 * MIB, [True, True])
    node.driver.fault = True
    await node.look()

    assert (node.card("a").overhead_bytes, node.alone("a", "b")) == (300 * MIB, [False, False])
    statistics = node.arbitration.statistics()
    assert statistics.failures == 1
    assert [figures.overhead_bytes >> 20 for figures in statistics.shares] == [300, 0]


async def test_who_is_alone_is_told_in_the_grant_and_stays_told(node: Node) -> None:
    node.add("a")
    node.add("b")
    node.driver.processes = {107: ("a", 1, 50)}
    await node.look()
    assert node.alone("a", "b") == [True, False]

    # Recovery and limit changes write grants, and know nothing of this.
    changed = replace(
        node.held[0].binding, devices=(replace(node.held[0].binding.devices[0], cores_percent=9),)
    )
    node.directories.ensure(changed)
    node.directories.ensure(node.held[1].binding)
    assert node.alone("a", "b") == [True, False]

    node.driver.processes |= {108: ("b", 1, 20)}
    await node.look()
    assert node.alone("a", "b") == [False, False]
    grant = decode_grant(node.directories.grant_path("claim-a", "gpu").read_bytes())
    assert (grant.sequence % 2, grant.devices[0].cores_percent) == (0, 9)


async def test_whoever_works_on_the_claim_comes_first(node: Node) -> None:
    node.add("a")
    async with node.locks.hold("claim-a"):
        await node.look()
        assert node.alone("a") == [False]
    await node.look()
    assert node.alone("a") == [True]


async def test_only_the_instance_that_leads_writes(node: Node) -> None:
    node.add("a", slot=(7, 1070, 0))
    node.driver.processes = {107: ("a", 300, 50)}
    node.leads = False
    await node.look(3)
    assert (node.alone("a"), node.card("a").overhead_bytes) == ([False], 0)
    assert (node.driver.asked, node.arbitration.statistics().shares) == (0, ())

    node.leads = True
    await node.look(2)
    assert (node.alone("a"), node.card("a").overhead_bytes) == ([True], 300 * MIB)


async def test_grants_hear_a_heartbeat_while_the_node_sees_and_leads(node: Node) -> None:
    node.add("a")
    node.add("free", cores_percent=0)
    beats: list[int] = []

    async def listen(seconds: int) -> int:
        """Return how many different ones were heard."""
        beats.clear()
        for _ in range(seconds):
            await node.look()
            beats.append(node.heartbeat("a"))
        return len(set(beats))

    node.add("idle")
    (node.directory("idle") / "region").unlink()
    assert await listen(12) >= 4
    assert node.heartbeat("idle") == 0, "nobody is there to hear it"
    assert 0 not in beats
    assert node.alone("a") == [True]
    grant = decode_grant(node.directories.grant_path("claim-a", "gpu").read_bytes())
    assert grant.sequence % 2 == 0
    assert node.heartbeat("free") == 0, "nothing of the moment is told to it"
    node.driver.fault = True
    assert await listen(12) == 1
    node.driver.fault = False
    assert await listen(4) >= 2
    node.leads = False
    assert await listen(12) == 1
    node.leads = True
    assert await listen(1) == 1
    assert beats[0] != 0


async def test_a_heartbeat_outlives_what_else_is_written(node: Node) -> None:
    node.add("a")
    await node.look()
    before = node.heartbeat("a")
    binding = node.held[0].binding
    card = replace(binding.devices[0], cores_percent=9)
    node.directories.ensure(replace(binding, devices=(card,)))

    assert node.heartbeat("a") == before != 0
    node.directories.remove("claim-a")
    await node.look(4)


async def test_the_correction_is_told_and_taken_back(node: Node) -> None:
    node.add("a")
    node.add("b", cores_percent=0)
    node.driver.processes = {107: ("a", 1, 60), 108: ("b", 1, 30)}
    charged_ns = 0
    for _ in range(8):  # half of what it has, but for the correction
        charged_ns += 302_500 * (node.card("a").trim_permille or 1000)
        node.launch("a", charged_ns)
        await node.look()
    assert node.card("a").trim_permille in range(1990, 2010)
    assert node.card("b").trim_permille == 0
    node.driver.processes = {107: ("a", 1, 60)}
    await node.look(5)
    assert (node.alone("a"), node.card("a").trim_permille) == ([True], 1000)


@pytest.mark.parametrize("content", [b"", b"x" * 336128, None])
async def test_a_region_that_is_none_costs_its_neighbour_nothing(
    node: Node, content: bytes | None
) -> None:
    node.add("a")
    node.add("b", slot=(8, 1080, 0))
    path = node.directory("a") / "region"
    path.unlink()
    if content is None:
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(content)
    node.driver.processes = {107: ("a", 300, 10), 108: ("b", 200, 0)}
    await node.look(2)

    assert node.card("b").overhead_bytes == 200 * MIB
    assert node.alone("a", "b") == [True, False]
    assert node.arbitration.statistics().damaged == 1


async def test_a_region_of_other_cards_is_not_written(node: Node) -> None:
    node.add("a")
    (node.directory("a") / "region").write_bytes(encode_region("GPU-other"))
    node.driver.processes = {107: ("a", 300, 10)}
    await node.look(3)

    assert node.card("a").overhead_bytes == 0


async def test_a_lower_priority_waits_while_a_higher_launches(node: Node) -> None:
    node.add("high", priority=0)
    node.add("low")
    node.driver.processes = {108: ("low", 1, 30)}
    await node.look()  # the lower one works, so the higher is charged for what it launches
    node.step()
    assert (node.card("low").gate, node.gates.held()) == (0, frozenset())

    node.launch("high", 1000)
    node.step()
    first = node.card("low").gate
    assert first != 0
    assert node.card("high").gate == 0
    for second in range(1, 30):
        node.launch("high", 1000 + second)
        node.step(0.09)
    assert node.card("low").gate not in {0, first}, "renewed, or libvgpu takes it for left behind"
    node.step(LINGER_SECONDS / 2)
    assert node.card("low").gate != 0
    node.step(LINGER_SECONDS)
    assert node.card("low").gate == 0


async def test_a_higher_priority_that_has_the_card_is_not_limited_and_goes_on_holding_it(
    node: Node,
) -> None:
    node.add("high", priority=0)
    node.add("low")
    node.driver.processes = {107: ("high", 1, 0), 108: ("low", 1, 30)}
    await node.look()
    node.step()
    assert node.alone("high", "low") == [False, True]
    node.launch("high", 1000)
    node.step()
    # The driver lags: its count of this second has nothing of it yet.
    await node.look()
    assert node.alone("high", "low") == [True, False]
    node.driver.processes = {107: ("high", 1, 90), 108: ("low", 1, 5)}
    for _ in range(3):
        node.step(0.3)
        assert node.card("low").gate != 0
    await node.look(2)
    node.step()
    assert (node.alone("high"), node.card("low").gate != 0) == ([True], True)
    node.driver.processes = {107: ("high", 1, 0), 108: ("low", 1, 0)}
    await node.look()
    node.step()
    assert node.card("low").gate == 0


async def test_a_higher_priority_that_is_not_charged_is_seen_by_the_driver(node: Node) -> None:
    node.add("high", priority=0, cores_percent=0)
    node.add("low")
    node.driver.processes = {107: ("high", 1, 50)}
    await node.look()
    node.step()
    assert node.card("low").gate != 0
    node.driver.processes = {107: ("high", 1, 0)}
    await node.look()
    node.step()
    assert node.card("low").gate == 0


async def test_a_higher_priority_that_is_not_charged_answers_when_it_launches(node: Node) -> None:
    node.add("high", priority=0, cores_percent=0)
    node.add("low")
    node.driver.processes = {107: ("high", 1, 0), 108: ("low", 1, 50)}
    await node.look()
    for _ in range(3):
        node.step()
        assert node.card("low").gate == 0, "it was asked, and has not answered"
    node.answer("high")
    node.step()
    assert node.card("low").gate != 0
    node.step(LINGER_SECONDS / 2)
    assert node.card("low").gate != 0
    node.step(LINGER_SECONDS)
    assert node.card("low").gate == 0
    # A region that somebody makes anew has no question in it, and is no answer.
    (node.directory("high") / "region").unlink()
    await node.look()
    node.step()
    (node.directory("high") / "region").write_bytes(encode_region(CARD))
    await node.look()
    node.step()
    assert node.card("low").gate == 0


async def test_gates_open_when_nobody_looks_after_them(node: Node) -> None:
    node.add("high", priority=0, cores_percent=0)
    node.add("low")
    node.driver.processes = {107: ("high", 1, 50)}
    await node.look()
    node.step()
    assert node.card("low").gate != 0
    node.leads = False
    await node.look()
    node.step()
    assert node.card("low").gate == 0


async def test_a_gate_that_a_dead_node_left_is_opened(node: Node) -> None:
    node.add("a")
    region = open_region(node.directory("a"), write=True)
    assert region is not None
    with region:
        region.write_gate(0, 5)
    await node.look()

    assert node.card("a").gate == 0


async def test_without_claims_nobody_is_asked(node: Node) -> None:
    await node.look(3)
    assert node.driver.asked == 0


async def test_a_driver_whose_cards_no_program_uses_is_asked_now_and_then(node: Node) -> None:
    for name in "ab":
        node.add(name)
        (node.directory(name) / "region").unlink()
    await node.look(20)
    assert (node.driver.asked, node.alone("a", "b")) == (2, [True, True])

    node.add("c")
    (node.directory("c") / "region").unlink()
    await node.look()
    assert (node.driver.asked, node.alone("c")) == (3, [True]), "before its first program comes"

    (node.directory("a") / "region").write_bytes(encode_region(CARD))
    node.driver.processes = {108: ("b", 1, 50)}
    await node.look()
    assert node.alone("a", "b") == [False, True], "a program came: what it is told is of now"
    await node.look(5)
    assert node.driver.asked == 9


async def test_a_grant_that_somebody_worked_on_is_told_as_soon_as_it_is_free(node: Node) -> None:
    node.add("a")
    (node.directory("a") / "region").unlink()
    async with node.locks.hold("claim-a"):
        await node.look()
    await node.look()
    assert node.alone("a") == [True]


async def test_a_claims_ceiling_and_burst_are_in_its_grant_and_bound_who_is_alone(
    node: Node,
) -> None:
    node.add("a", cores_percent=20, ceiling_percent=80, burst_ms=5)
    await node.look()

    grant = decode_grant(node.directories.grant_path("claim-a", "gpu").read_bytes())
    (card,) = grant.devices
    assert (card.ceiling_percent, card.burst_ms, card.alone) == (80, 5, True)
    (figures,) = node.arbitration.statistics().shares
    assert (figures.share.permille, figures.share.permille_alone) == (200, 800)


async def test_no_bytes_of_a_tenant_stop_the_node_or_reach_a_neighbour(node: Node) -> None:
    chance = random.Random(20261121)  # noqa: S311 - not for secrets
    node.add("bad", slot=(7, 1070, 5 * MIB), priority=0)
    node.add("good", slot=(8, 1080, 100 * MIB))
    node.driver.processes = {107: ("bad", 300, 10), 108: ("good", 200, 10)}
    path = node.directory("bad") / "region"
    good = path.read_bytes()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 40)):
            top = 512 if chance.random() < 0.7 else len(data)
            data[chance.randrange(8, top)] = chance.randrange(256)
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        await node.look()
        node.step()

    assert node.card("good").overhead_bytes == 100 * MIB
    assert node.region("good").processes[0].host_pid == 108
    assert node.card("good").trim_permille in range(2000)
    assert path.stat().st_size <= len(good)
    path.write_bytes(good)
    await node.look(3)
    assert node.card("bad").overhead_bytes == 295 * MIB


async def test_a_grant_that_cannot_be_written_is_said_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.add("a")

    def fail(*_: object) -> bool:
        raise RetryError("read-only")

    monkeypatch.setattr(node.directories, "mark_alone", fail)
    with capture_logs() as logs:
        await node.look(3)
    assert [line["event"] for line in logs].count("arbitration.not_told") == 1
    monkeypatch.undo()
    await node.look()
    assert node.alone("a") == [True]


async def test_a_node_that_stops_opens_its_gates(node: Node) -> None:
    node.add("high", priority=0, cores_percent=0)
    node.add("low")
    node.driver.processes = {107: ("high", 1, 50)}
    moved = asyncio.create_task(node.gates.run())
    await node.look()
    async with asyncio.timeout(10):
        while not node.gates.held():  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.005)
    assert node.card("low").gate != 0
    moved.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moved

    assert node.card("low").gate == 0
