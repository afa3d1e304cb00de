"""Who uses more than was granted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.audit import Auditor, HeldClaim, Judgement, Pod, ProcessUse, read_pods
from hami_dra.policy.binding import Binding, BoundDevice

CARD = "GPU-0"
A, B = (Pod("team", name, f"uid-{name}") for name in "ab")


def device(limit_mib: int = 3000, **changes: Any) -> BoundDevice:
    facts: dict[str, Any] = {
        "request": "gpu",
        "pool": "node-1",
        "device": "gpu-0",
        "uuid": CARD,
        "minor": 0,
        "share_id": "s",
        "memory_mib": limit_mib,
        "cores_percent": 0,
        "consumed_memory_mib": 3000,
        "consumed_cores": 0,
        "consumed_slots": 1,
    }
    return BoundDevice(**facts | changes)


def hold(
    name: str, *pods: Pod, devices: tuple[BoundDevice, ...] = (), changed: bool = False
) -> HeldClaim:
    binding = Binding(
        claim_uid=f"claim-{name}", namespace="team", name=name, devices=devices or (device(),)
    )
    return HeldClaim(binding, frozenset(pods), changed=changed)


def use(used_mib: int, pod: Pod | None = A, *, uuid: str = CARD, pid: int = 1) -> ProcessUse:
    return ProcessUse(uuid, pid, used_mib, pod.uid if pod else None)


def judge(auditor: Auditor, held: list[HeldClaim], *readings: list[ProcessUse]) -> list[Judgement]:
    return [auditor.judge(held, reading) for reading in readings]


def begun(judgements: list[Judgement]) -> list[int]:
    return [len(judgement.begun) for judgement in judgements]


def test_who_uses_too_much_twice_in_a_row_is_told_once() -> None:
    over, under = [use(3101)], [use(3100)]
    found = judge(
        Auditor(context_mib=100), [hold("job", A)], over, under, over, over, over, under, over, over
    )

    assert begun(found) == [0, 0, 0, 1, 0, 0, 0, 1]
    assert [len(item.excesses) for item in found] == [0, 0, 0, 1, 1, 0, 0, 1]
    (excess,) = found[3].excesses
    assert (excess.pods, excess.claims, excess.uuid) == ((A,), ("team/job",), CARD)
    assert (excess.used_mib, excess.granted_mib, excess.allowance_mib) == (3101, 3000, 100)


@pytest.mark.parametrize(
    ("uses", "over"),
    [
        ([use(3000)], False),
        ([use(3001)], True),
        ([use(1500, pid=1), use(1500, pid=2)], False),
        ([use(1500, pid=1), use(1501, pid=2)], True),
        ([use(9000, uuid="GPU-1")], False),
        ([use(9000, B)], False),
        ([use(9000, None)], False),
        ([], False),
    ],
)
def test_only_the_pods_own_processes_on_the_card_count(
    uses: list[ProcessUse], *, over: bool
) -> None:
    found = judge(Auditor(context_mib=0), [hold("job", A)], uses, uses)

    assert bool(found[-1].excesses) is over


def test_every_process_may_have_a_context_besides() -> None:
    uses = [use(1900, pid=pid) for pid in (1, 2)]

    assert not judge(Auditor(context_mib=400), [hold("job", A)], uses, uses)[-1].excesses
    assert judge(Auditor(context_mib=399), [hold("job", A)], uses, uses)[-1].excesses


def test_pods_that_share_a_claim_share_its_budget() -> None:
    held = [hold("both", A, B), hold("own", B, devices=(device(1000),))]
    fine = [use(500, A), use(3500, B)]
    over = [use(500, A), use(3501, B)]

    assert not judge(Auditor(context_mib=0), held, fine, fine)[-1].excesses
    (excess,) = judge(Auditor(context_mib=0), held, over, over)[-1].excesses
    assert excess.pods == (B, A)
    assert excess.claims == ("team/both", "team/own")
    assert excess.granted_mib == 4000


@pytest.mark.parametrize(
    "changes",
    [
        {"limit_mib": 0},
        {"exclusive": True},
        {"admin": True},
        {"control_disabled": True},
    ],
)
def test_who_is_not_limited_is_not_judged(changes: dict[str, Any]) -> None:
    held = [hold("job", A, devices=(device(**changes),)), hold("small", A)]
    uses = [use(99999)]

    assert not judge(Auditor(context_mib=0), held, uses, uses)[-1].excesses


def test_a_claim_that_no_pod_uses_is_not_judged() -> None:
    assert not judge(Auditor(context_mib=0), [hold("job")], [use(9)], [use(9)])[-1].excesses


def test_what_pods_without_a_claim_use_is_told_by_card() -> None:
    uses = [use(5, B), use(7, B, pid=2), use(9, None), use(1, A, uuid="GPU-1")]
    (found,) = judge(Auditor(context_mib=0), [hold("job", A)], uses)

    assert found.unclaimed_mib == {CARD: 12, "GPU-1": 1}


def test_a_lowered_limit_is_no_crime_of_those_who_had_more_before() -> None:
    auditor = Auditor(context_mib=0)
    before, after = hold("job", A), hold("job", A, devices=(device(1000),), changed=True)
    readings: list[tuple[HeldClaim, int, bool]] = [
        (before, 2500, False),
        (after, 2500, False),  # nobody takes memory back
        (after, 2500, False),
        (after, 2000, False),  # it gives some back
        (after, 2001, False),  # and takes it again: seen once
        (after, 2001, True),
    ]

    for claim, used, over in readings:
        assert bool(auditor.judge([claim], [use(used)]).excesses) is over
    # After a restart nobody knows what was used when the limit was lowered.
    fresh = Auditor(context_mib=0)
    assert not judge(fresh, [after], [use(2500)], [use(2500)])[-1].excesses
    assert judge(Auditor(context_mib=0), [after], [use(3001)], [use(3001)])[-1].excesses


@given(
    st.lists(st.integers(0, 4000), min_size=2, max_size=8),
    st.integers(1, 3000),
)
def test_an_honest_program_is_never_reported(wanted: list[int], lowered_mib: int) -> None:
    """It takes what libvgpu lets it: up to the limit, and keeps what it has."""
    auditor = Auditor(context_mib=0)
    has = 0
    for step, ask in enumerate(wanted):
        limit = 3000 if step < len(wanted) // 2 else lowered_mib
        claim = hold("job", A, devices=(device(limit),), changed=limit != 3000)
        has = ask if ask <= has or ask <= limit else has
        assert not auditor.judge([claim], [use(has)]).excesses


@given(st.lists(st.integers(3001, 9000), min_size=2, max_size=6))
def test_who_goes_beyond_what_is_consumed_is_always_reported(used: list[int]) -> None:
    auditor = Auditor(context_mib=0)
    found = [auditor.judge([hold("job", A)], [use(amount)]) for amount in used]

    assert begun(found) == [0, 1, *[0] * (len(used) - 2)]


def test_pods_are_read_from_the_reservation() -> None:
    claim = {
        "metadata": {"namespace": "team"},
        "status": {
            "reservedFor": [
                {"resource": "pods", "name": "a", "uid": "uid-a"},
                {"resource": "jobs", "apiGroup": "batch", "name": "x", "uid": "y"},
            ]
        },
    }

    assert read_pods(claim) == {A}
    assert read_pods({}) == frozenset()
