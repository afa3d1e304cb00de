"""When a card is marked, and when the mark ends."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.healthconfig import FATAL_XIDS, IGNORED_XIDS, HealthConfig, XidTable
from hami_dra.contract.nodeconfig import decode_node_config
from hami_dra.policy.health import (
    CardEvent,
    CardState,
    CardVitals,
    classify_xid,
    find_next_change,
    forget_ended,
    list_faults,
    note_event,
    note_return,
    note_vitals,
)
from hami_dra.policy.taints import Taint

HEALTH = HealthConfig(quiet_seconds=100.0, bad_looks=2, good_looks=3)
WELL = CardVitals(0, remap_failed=False, recovery_action=0)


def xid(number: int, now: float = 0.0, state: CardState | None = None) -> CardState:
    return note_event(state or CardState(), CardEvent("GPU-a", "xid", number), now)


def look(
    state: CardState, *vitals: CardVitals, now: float = 0.0, health: HealthConfig = HEALTH
) -> CardState:
    for each in vitals:
        state = note_vitals(state, each, now, health)
    return state


def marks(state: CardState, now: float = 0.0, health: HealthConfig = HEALTH) -> list[str]:
    return [
        f"{f.taint.key.rpartition('/')[2]}={f.taint.value}" for f in list_faults(state, now, health)
    ]


@pytest.mark.parametrize(
    ("number", "table", "meaning"),
    [
        (13, {}, "ignored"),
        (79, {}, "fatal"),
        (74, {}, "suspect"),
        (9999, {}, "suspect"),
        (9999, {"others": "ignored"}, "ignored"),
        (13, {"fatal": [13]}, "fatal"),
        (79, {"ignored": [79]}, "ignored"),
        (94, {"suspect": [94]}, "suspect"),
    ],
)
def test_an_xid_means_what_the_file_says_and_else_what_the_catalogue_says(
    number: int, table: dict[str, Any], meaning: str
) -> None:
    config = decode_node_config({"health": {"xids": table}})

    assert classify_xid(number, config.health.xids) == meaning


def test_the_default_lists_do_not_overlap_and_know_the_usual_suspects() -> None:
    assert not set(IGNORED_XIDS) & set(FATAL_XIDS)
    assert {13, 31, 43, 45, 68, 109} <= set(IGNORED_XIDS)
    assert {48, 79, 95, 119} <= set(FATAL_XIDS)


def test_a_fault_of_an_application_marks_nothing() -> None:
    assert marks(xid(31)) == []


def test_a_suspected_card_is_trusted_again_when_it_was_quiet() -> None:
    state = xid(74, now=50.0)
    assert marks(state, 149.9) == ["xid=74"]
    assert find_next_change(state, 50.0, HEALTH) == 150.0
    assert marks(state, 150.0) == []
    assert marks(xid(74, 140.0, state), 150.0) == ["xid=74"]


def test_a_reset_that_the_driver_does_not_speak_of_is_a_card_that_went_and_came() -> None:
    old = replace(WELL, recovery_action=None)
    state = look(xid(79), *[old] * 10, now=1e6)
    assert marks(state, 1e6) == ["xid=79"]
    assert marks(note_return(state), 1e6) == []


def test_a_reset_is_over_when_the_driver_wants_nothing_done_any_more() -> None:
    asking = replace(WELL, recovery_action=1)
    state = look(xid(79), asking, asking)
    assert marks(state) == ["xid=79", "recovery=gpu-reset"]
    state = look(note_return(state), WELL, WELL)
    assert marks(state, 1.0) == ["xid=79", "recovery=gpu-reset"]
    assert marks(look(state, WELL), 1.0) == []


def test_a_card_that_wants_nothing_done_still_has_to_be_quiet() -> None:
    state = look(xid(48), *[WELL] * 5)
    assert marks(state, 99.0) == ["xid=48"]
    assert marks(state, 100.0) == []


def test_a_card_that_hung_is_not_one_that_was_reset() -> None:
    state = look(xid(119), replace(WELL, recovery_action=1))
    assert marks(note_return(state), 1e6) == ["xid=119"]


def test_the_worst_report_is_the_one_that_is_published() -> None:
    state = xid(74, 2.0, xid(79, 1.0, xid(61)))
    assert marks(state, 3.0) == ["xid=79"]
    other = HealthConfig(xids=XidTable(ignored=(79,)), quiet_seconds=100.0)
    assert marks(state, 3.0, other) == ["xid=74"]


def test_a_memory_error_counts_from_the_first_look_on() -> None:
    state = look(CardState(), replace(WELL, uncorrected_errors=5))
    assert marks(state) == []
    state = look(state, replace(WELL, uncorrected_errors=6), now=10.0)
    assert marks(state, 10.0) == ["ecc=uncorrected"]
    assert marks(state, 110.0) == []
    counted_anew = look(state, replace(WELL, uncorrected_errors=0), now=200.0)
    assert marks(counted_anew, 200.0) == []
    assert marks(look(counted_anew, replace(WELL, uncorrected_errors=1), now=201.0), 201.0)


def test_one_look_is_no_look() -> None:
    broken = replace(WELL, remap_failed=True)
    state = look(CardState(), broken)
    assert marks(state) == []
    state = look(state, WELL, broken, broken)
    assert marks(state) == ["memory=remap-failed"]
    state = look(state, WELL, WELL)
    assert marks(look(state, broken)) == ["memory=remap-failed"]
    assert marks(look(state, CardVitals())) == ["memory=remap-failed"]
    assert marks(look(state, WELL)) == []


def test_effects_are_a_policy() -> None:
    health = HealthConfig(fatal_effect="NoExecute")
    (fault,) = list_faults(xid(79), 0.0, health)
    assert fault.taint == Taint("gpu.project-hami.io/xid", "79", "NoExecute")
    assert "XID 79" in fault.message
    (fault,) = list_faults(xid(74), 0.0, health)
    assert fault.taint.effect == "NoSchedule"


numbers = st.sampled_from([13, 31, 48, 61, 74, 79, 95, 9999])
vitals = st.builds(
    CardVitals,
    st.none() | st.integers(0, 3),
    st.none() | st.booleans(),
    st.none() | st.integers(0, 9),
)
steps = st.lists(st.one_of(numbers, vitals, st.just("ecc"), st.just("return")), max_size=30)


def walk(history: list[Any]) -> tuple[CardState, float]:
    state, now = CardState(), 0.0
    for step in history:
        now += 10.0
        if isinstance(step, CardVitals):
            state = note_vitals(state, step, now, HEALTH)
        elif step == "return":
            state = note_return(state)
        elif step == "ecc":
            state = note_event(state, CardEvent("GPU-a", "ecc"), now)
        else:
            state = xid(step, now, state)
    return state, now


@given(steps)
def test_whatever_happened_a_card_that_had_its_reset_and_is_well_and_quiet_is_trusted(
    history: list[Any],
) -> None:
    state, now = walk(history)
    state = note_return(state)
    state = look(state, *[WELL] * HEALTH.good_looks, now=now + 1)
    assert marks(state, now + 1 + HEALTH.quiet_seconds) == []


@given(steps)
def test_faults_have_different_keys_and_end_when_they_say(history: list[Any]) -> None:
    state, now = walk(history)
    faults = list_faults(state, now, HEALTH)
    keys = [fault.taint.key for fault in faults]
    assert len(keys) == len(set(keys))
    for fault in faults:
        if fault.until is not None:
            later = [each.taint for each in list_faults(state, fault.until, HEALTH)]
            assert fault.taint not in later
            change = find_next_change(state, now, HEALTH)
            assert change is not None
            assert now < change <= fault.until


@given(steps)
def test_what_is_forgotten_marks_nothing(history: list[Any]) -> None:
    state, now = walk(history)
    forgotten = forget_ended(state, now, HEALTH)
    assert list_faults(forgotten, now, HEALTH) == list_faults(state, now, HEALTH)
    assert forget_ended(forgotten, now, HEALTH) == forgotten


@given(st.lists(st.sampled_from(sorted(IGNORED_XIDS)), max_size=50))
def test_applications_alone_never_mark_a_card(history: list[int]) -> None:
    state, now = walk(list(history))
    assert marks(state, now) == []
