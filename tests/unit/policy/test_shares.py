"""Whose processes are, what the driver has for them, who works, and who has to wait."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.region import RegionDevice, RegionProcess, RegionView
from hami_dra.policy.arbitration import HOLD_SECONDS, Arbiter, Standing
from hami_dra.policy.overhead import OverheadMeter
from hami_dra.policy.shares import (
    CardUse,
    GrantName,
    OwnedUse,
    ProcessOwners,
    Share,
    ShareName,
    list_shares,
)
from tests.unit.policy.test_audit import A, B, device, hold

CARD = "GPU-0"
MIB = 1 << 20


def share(claim: str, *pods: str, index: int = 0, **changes: Any) -> Share:
    facts: dict[str, Any] = {
        "name": ShareName(GrantName(claim, "gpu"), index),
        "uuid": CARD,
        "namespace": "team",
        "claim": claim,
        "pods": frozenset(pods),
        "memory_bytes": 1000 * MIB,
        "cores_percent": 30,
    }
    return Share(**facts | changes)


def use(pid: int, pod: str | None, mib: int = 0, **changes: Any) -> CardUse:
    facts: dict[str, Any] = {
        "uuid": CARD,
        "pid": pid,
        "inner_pid": pid % 100,
        "start_ticks": pid * 10,
        "used_bytes": mib * MIB,
        "busy_permille": 0,
        "pod_uid": pod,
        "container_id": f"box-{pod}",
    }
    return CardUse(**facts | changes)


def slot(number: int, pid: int, *mib: int, start: int | None = None) -> RegionProcess:
    """Return the slot of `use(pid)`."""
    began = pid * 10 if start is None else start
    used = tuple(m * MIB for m in mib or (0,))
    return RegionProcess(number, pid % 100, 0, began, 1, used, (0,) * len(used))


def region(*slots: RegionProcess) -> RegionView:
    return RegionView(1, 1, 0, (), slots)


def say(**changes: Any) -> RegionDevice:
    facts: dict[str, Any] = {
        "uuid": CARD,
        "limit_bytes": None,
        "used_bytes": 0,
        "overhead_bytes": 0,
        "spilled_bytes": 0,
        "spill_count": 0,
        "peak_bytes": 0,
        "busy_ns": 0,
        "long_ns": 0,
        "due_ns": 0,
        "throttled_ns": 0,
        "limit_permille": 0,
        "trim_permille": 0,
        "gate": 0,
        "alloc_count": 0,
        "free_count": 0,
        "oom_count": 0,
        "driver_oom_count": 0,
        "unhooked_count": 0,
        "waits": (0,) * 6,
    }
    return RegionDevice(**facts | changes)


# --- whose


def test_shares_are_the_controlled_devices_of_claims_in_libvgpus_order() -> None:
    devices = (
        device(100, request="b", cores_percent=30, core_policy="force", priority=0),
        device(200, request="a", admin=True),
        device(300, request="a", uuid="GPU-1"),
        device(400, request="b", uuid="GPU-2", control_disabled=True, cores_percent=20),
    )
    found = list_shares([hold("z", A, devices=devices), hold("job", A, B)])

    assert [
        (s.name.grant.claim_uid, s.name.grant.request, s.name.index, s.uuid, s.permille)
        for s in found
    ] == [
        ("claim-job", "gpu", 0, "GPU-0", 1000),
        ("claim-z", "a", 0, "GPU-1", 1000),
        ("claim-z", "b", 0, "GPU-0", 300),
        ("claim-z", "b", 1, "GPU-2", 1000),
    ]
    assert [s.priority for s in found] == [1, 1, 0, 1]
    assert found[0].pods == {"uid-a", "uid-b"}


def owners(
    shares: list[Share], uses: list[CardUse], regions: dict[str, RegionView] | None = None
) -> list[list[str]]:
    views = {GrantName(claim, "gpu"): view for claim, view in (regions or {}).items()}
    found = ProcessOwners().find(shares, uses, views)
    return [[s.claim for s in item.shares] for item in found]


def test_a_pods_only_share_is_its_processes() -> None:
    shares = [share("one", "p"), share("two", "q"), share("far", "p", uuid="GPU-1")]

    assert owners(shares, [use(7, "p"), use(8, "q"), use(9, "x"), use(10, None)]) == [
        ["one"],
        ["two"],
        [],
        [],
    ]


def test_of_several_shares_the_slots_tell() -> None:
    shares = [share("one", "p"), share("two", "p"), share("three", "p")]
    regions = {"one": region(slot(0, 7)), "two": region(slot(3, 7), slot(4, 8, start=1))}

    # 8 has the number of a slot, but another start: the slot is of one that died.
    assert owners(shares, [use(7, "p"), use(8, "p")], regions) == [["one", "two"], ["one", "two"]]
    assert owners(shares, [use(8, "p", container_id="other")], regions) == [[]]


def test_what_a_container_was_seen_to_use_its_next_process_uses() -> None:
    shares = [share("one", "p"), share("two", "p")]
    known = ProcessOwners()
    slots = {GrantName("two", "gpu"): region(slot(0, 7, 5))}
    known.find(shares, [use(7, "p", container_id="c2")], slots)

    (after,) = known.find(shares, [use(8, "p", container_id="c2")], {})
    (other,) = known.find(shares, [use(9, "p", container_id="c1")], {})
    assert ([s.claim for s in after.shares], other.shares) == (["two"], ())
    (gone,) = known.find([shares[0]], [use(8, "p", container_id="c2")], {})
    assert [s.claim for s in gone.shares] == ["one"], "the only one that is left"


def test_two_processes_of_one_number_and_start_have_a_slot_each() -> None:
    shares = [share("both", "p", "q")]
    slots = {GrantName("both", "gpu"): region(slot(0, 1, 5, start=9), slot(1, 1, 6, start=9))}
    uses = [use(1, "p", start_ticks=9), use(101, "q", start_ticks=9)]

    found = ProcessOwners().find(shares, uses, slots)
    assert sorted(item.charged_bytes for item in found) == [5 * MIB, 6 * MIB]


@pytest.mark.parametrize("order", [1, -1])
def test_twins_have_their_overhead_together_right(order: int) -> None:
    shares = [share("both", "p", "q")]
    slots = {GrantName("both", "gpu"): region(slot(0, 1, 500, start=9), slot(1, 1, 700, start=9))}
    uses = [use(1, "p", 550, start_ticks=9), use(101, "q", 750, start_ticks=9)][::order]
    found = ProcessOwners().find(shares, uses, slots)

    assert [item.use.used_bytes - item.charged_bytes for item in found] == [50 * MIB] * 2


def test_twins_are_told_apart_by_their_namespaces_where_those_can_be_seen() -> None:
    shares = [share("both", "p", "q")]
    first, second = (
        replace(slot(number, 1, mib, start=9), pid_namespace=number)
        for number, mib in ((1, 5), (2, 6))
    )
    slots = {GrantName("both", "gpu"): region(first, second)}
    uses = [
        use(1, "p", 5, start_ticks=9, pid_namespace=1),
        use(101, "q", 900, start_ticks=9, pid_namespace=2),
        use(201, "q", 901, start_ticks=9, pid_namespace=3),
    ]
    found = ProcessOwners().find(shares, uses, slots)

    assert [item.charged_bytes for item in found] == [5 * MIB, 6 * MIB, 0]


# --- the driver's part


def measure(
    meter: OverheadMeter, *items: tuple[CardUse, tuple[Share, ...], int], before: int | None = None
) -> dict[str, int]:
    """Return MiB by claim; items are a process, its shares, and MiB charged by the first."""
    owned = [
        OwnedUse(u, s, {s[0].name.grant: RegionProcess(0, 1, 0, 1, 1, (charged * MIB,), (0,))})
        for u, s, charged in items
    ]
    known = {
        (u.uuid, u.pid): (charged if before is None else before) * MIB for u, _, charged in items
    }
    return {n.grant.claim_uid: b // MIB for n, b in meter.measure(owned, known).items()}


def test_what_two_readings_agree_on_counts() -> None:
    meter, one = OverheadMeter(), (share("one"),)
    seen = [
        measure(meter, (use(7, "p", mib), one, charged)).get("one", 0)
        for mib, charged in ((400, 100), (400, 100), (900, 100), (400, 100), (500, 100), (600, 100))
    ]
    assert seen == [0, 300, 300, 300, 300, 400]
    down = [
        measure(meter, (use(7, "p", mib), one, 100)).get("one", 0) for mib in (100, 450, 150, 100)
    ]
    assert down == [400, 350, 350, 50]
    assert measure(meter) == {}, "who has ended has nothing"


def test_charges_that_changed_meanwhile_say_nothing() -> None:
    meter, one = OverheadMeter(), (share("one"),)
    for _ in range(2):
        assert measure(meter, (use(7, "p", 400), one, 0), before=50) == {}
    measure(meter, (use(7, "p", 400), one, 100))
    assert measure(meter, (use(7, "p", 400), one, 100)) == {"one": 300}
    assert measure(meter, (use(7, "p", 400), one, 0), before=100) == {"one": 300}


def test_it_fills_shares_as_libvgpu_does() -> None:
    meter = OverheadMeter()
    both = (share("one", memory_bytes=100 * MIB), share("two", memory_bytes=0))
    processes = (use(7, "p", 250), both, 0), (use(8, "p", 30), both[1:], 0)
    measure(meter, *processes)
    assert measure(meter, *processes) == {"one": 100, "two": 180}


def test_a_share_that_is_full_leaves_it_to_the_next() -> None:
    meter, both = OverheadMeter(), (share("one", memory_bytes=100 * MIB), share("two"))
    slots = {
        both[0].name.grant: RegionProcess(0, 1, 0, 1, 1, (90 * MIB,), (0,)),
        both[1].name.grant: RegionProcess(0, 1, 0, 1, 1, (500 * MIB,), (0,)),
    }
    item = OwnedUse(use(7, "p", 640), both, slots)
    reading = (
        [item],
        {(CARD, 7): 590 * MIB},
        {both[0].name: 90 * MIB, both[1].name: 500 * MIB},
    )
    meter.measure(*reading)
    assert meter.measure(*reading) == {both[0].name: 10 * MIB, both[1].name: 40 * MIB}
    assert item.split_bytes() == {both[0].name: 140 * MIB, both[1].name: 500 * MIB}


@given(st.lists(st.lists(st.integers(0, 900), min_size=3, max_size=3), min_size=1, max_size=8))
def test_overhead_is_never_negative_and_never_more_than_the_driver_ever_said(
    readings: list[list[int]],
) -> None:
    meter, shares = OverheadMeter(), (share("one", memory_bytes=50 * MIB), share("two"))
    for used, charged, before in readings:
        found = measure(meter, (use(7, "p", used), shares, charged), before=before)
        assert all(value > 0 for value in found.values())
        assert sum(found.values()) <= max(max(u - c, 0) for u, c, _ in readings)


# --- who works, who waits


class Judged:
    """An arbiter and what it is shown."""

    def __init__(self, *shares: Share) -> None:
        self.arbiter = Arbiter()
        self.shares = list(shares)
        self.busy: dict[str, int] = {}
        self.now = 100.0

    def judge(  # noqa: D102
        self,
        *owned: OwnedUse,
        blind: bool = False,
        launching: tuple[str, ...] = (),
        held: tuple[str, ...] = (),
    ) -> Standing:
        for claim in launching:
            self.busy[claim] = self.busy.get(claim, 0) + 1
        devices = {s.name: say(busy_ns=self.busy.get(s.claim, 0)) for s in self.shares}
        self.now += 1
        standing = self.arbiter.judge(
            self.shares,
            None if blind else owned,
            devices,
            held=frozenset(s.name for s in self.shares if s.claim in held),
            now=self.now,
        )
        self.arbiter.remember(devices)
        return standing

    def alone(self, *owned: OwnedUse, **options: Any) -> list[str]:  # noqa: D102
        standing = self.judge(*owned, **options)
        return [s.claim for s in self.shares if s.name in standing.alone]


def works(owner: Share | None, busy: int | None = 500, pid: int = 7) -> OwnedUse:
    seen = use(pid, "p", busy_permille=busy)
    return OwnedUse(seen, (owner,) if owner else (), {})


def test_who_has_no_working_neighbour_is_alone() -> None:
    one, two, far = share("one"), share("two"), share("far", uuid="GPU-1")
    node = Judged(one, two, far)

    assert node.alone() == ["one", "two", "far"]
    assert node.alone(works(one)) == ["one", "far"]
    assert node.alone(works(one), works(two, pid=8)) == ["far"]
    for _ in range(int(HOLD_SECONDS) - 1):
        assert node.alone(works(two, pid=8)) == ["far"], "work counts for a while"
    assert node.alone(works(two, pid=8)) == ["two", "far"]


@pytest.mark.parametrize("busy", [0, None, 300])
def test_who_is_nobodys_is_a_neighbour_of_all_unless_it_is_idle(busy: int | None) -> None:
    node = Judged(share("one"), share("two"))

    assert node.alone(works(None, busy)) == (["one", "two"] if busy == 0 else [])


def test_launches_show_before_the_driver_does() -> None:
    node = Judged(share("one"), share("two"))

    assert node.alone(launching=("two",)) == ["two"]
    assert node.alone(launching=("one", "two")) == []


def test_what_cannot_be_seen_counts_as_work() -> None:
    one, two = share("one"), share("two")
    assert Judged(one, two).alone(blind=True) == []
    assert Judged(one).alone(blind=True) == ["one"]
    assert Judged(one, two).alone(works(one, None)) == ["one"]


def test_two_shares_of_one_process_are_no_neighbours() -> None:
    one, two = share("one"), share("two")
    together = replace(works(one), shares=(one, two))

    assert Judged(one, two).alone(together) == ["one", "two"]


def test_a_lower_priority_waits_for_a_higher_and_does_not_count_meanwhile() -> None:
    high, low, least = share("high", priority=0), share("low"), share("least", priority=7)
    free = share("free", priority=9, cores_percent=0)
    node = Judged(high, low, least, free)

    rivals = node.judge(works(high)).rivals
    assert {
        name.grant.claim_uid: sorted(r.grant.claim_uid for r in who) for name, who in rivals.items()
    } == {
        "low": ["high"],
        "least": ["high", "low"],
    }
    both = works(high), works(low, pid=8)
    assert node.alone(*both) == []
    assert node.alone(*both, held=("low",)) == ["high"]
    assert node.alone(*both, works(free, pid=9), held=("low",)) == [], "nothing can hold it"


# --- trim


def trims(
    *, busy: tuple[int | None, int | None], charged_ms: int, alone: bool = False, due_ns: int = 0
) -> list[int]:
    one, two = share("one", cores_percent=40), share("two", cores_percent=0)
    arbiter, found = Arbiter(), {}
    for second in range(4):
        charged_ns = second * charged_ms * 1_000_000
        device = say(busy_ns=charged_ns, long_ns=charged_ns, due_ns=due_ns)
        devices = {one.name: device, two.name: say()}
        owned = [works(one, busy[0]), works(two, busy[1], pid=8)]
        found = arbiter.trim(
            [one, two],
            owned,
            devices,
            alone=frozenset({one.name} if alone else ()),
            now=50.0 + second,
        )
        arbiter.remember(devices)
    return [found.get(one.name, -1), found.get(two.name, -1)]


def test_a_share_that_is_charged_more_than_it_has_is_charged_less() -> None:
    low, other = trims(busy=(200, 500), charged_ms=400)
    assert 400 <= low < 800
    assert other == 1000, "it has no limit"
    assert trims(busy=(395, 500), charged_ms=400)[0] == 1000
    assert trims(busy=(600, 300), charged_ms=400)[0] > 1000
    assert trims(busy=(200, 500), charged_ms=400, alone=True)[0] == 1000
    assert trims(busy=(200, 0), charged_ms=400)[0] == 1000, "nobody is in its samples"
    assert trims(busy=(200, None), charged_ms=400)[0] == -1, "unknown: as it is"
    assert trims(busy=(200, 500), charged_ms=0)[0] == 1000, "paid for before"
    assert trims(busy=(0, 500), charged_ms=10**9, due_ns=2**63)[0] in range(100, 1000)


@pytest.mark.parametrize(
    ("changes", "beside", "alone"),
    [
        ({}, 300, 1000),
        ({"ceiling_percent": 80}, 300, 800),
        ({"ceiling_percent": 20}, 300, 300),
        ({"core_policy": "force"}, 300, 300),
        ({"core_policy": "force", "ceiling_percent": 80}, 300, 800),
        ({"core_policy": "disable"}, 1000, 1000),
        ({"cores_percent": 0}, 1000, 1000),
        ({"control_disabled": True}, 1000, 1000),
    ],
)
def test_limits_are_those_that_libvgpu_makes_of_a_grant(
    changes: dict[str, Any], beside: int, alone: int
) -> None:
    one = share("one", **changes)

    assert (one.permille, one.permille_alone) == (beside, alone)
