"""Events, looks and time: what the node holds for wrong with its cards."""

import asyncio
from typing import Any

from hami_dra.contract.healthconfig import HealthConfig, XidTable
from hami_dra.gpu.source import Watch
from hami_dra.node.health import CardHealth, Faults
from hami_dra.policy.health import CardEvent, CardVitals
from hami_dra.service.clock import ManualClock

WELL = CardVitals(0, remap_failed=False, recovery_action=0)


def make(**changes: Any) -> tuple[CardHealth, ManualClock, list[dict[str, list[str]]]]:
    told: list[dict[str, list[str]]] = []

    def note(faults: Faults) -> None:
        told.append({uuid: [f.taint.value for f in held] for uuid, held in faults.items()})

    clock = ManualClock()
    config = HealthConfig(**{"quiet_seconds": 0.05} | changes)
    return CardHealth(config=config, clock=clock, on_change=note), clock, told


async def test_a_mark_that_ends_by_time_ends_by_itself() -> None:
    health, clock, told = make()
    task = asyncio.create_task(health.run())
    await asyncio.sleep(0)
    health.note_event(CardEvent("GPU-a", "xid", 74))
    assert told == [{"GPU-a": ["74"]}]
    clock.advance(0.06)
    async with asyncio.timeout(5):
        while len(told) < 2:  # noqa: ASYNC110 - told by a callback
            await asyncio.sleep(0.01)
    assert told[-1] == {}
    task.cancel()


async def test_only_changes_are_told() -> None:
    health, _, told = make(quiet_seconds=60.0)
    for _ in range(3):
        health.note_event(CardEvent("GPU-a", "xid", 13))
        health.note_look({"GPU-a": WELL}, frozenset())
    assert told == []
    for lost in ({"GPU-b"}, {"GPU-b"}, set[str]()):
        health.note_look({"GPU-a": WELL}, frozenset(lost))
    assert told == [{"GPU-b": ["not-described"]}, {}]
    assert health.statistics().xids == {("GPU-a", 13): 3}


async def test_another_configuration_judges_what_was_reported_before() -> None:
    health, _, told = make(quiet_seconds=60.0)
    health.note_event(CardEvent("GPU-a", "xid", 31))
    assert told == []
    health.set_config(HealthConfig(xids=XidTable(fatal=(31,)), fatal_effect="NoExecute"))
    assert told == [{"GPU-a": ["31"]}]
    (fault,) = health.statistics().faults["GPU-a"]
    assert fault.taint.effect == "NoExecute"
    health.set_config(HealthConfig())
    assert told[-1] == {}


async def test_a_mark_that_ended_does_not_come_back_with_another_configuration() -> None:
    health, clock, told = make(quiet_seconds=10.0, good_looks=1)
    for number in (74, 79, 31):
        health.note_event(CardEvent("GPU-a", "xid", number))
    health.note_event(CardEvent("GPU-a", "ecc"))
    health.note_look({"GPU-a": WELL}, frozenset())
    clock.advance(10.0)
    health.note_look({"GPU-a": WELL}, frozenset())
    assert told[-1] == {}
    health.set_config(HealthConfig(quiet_seconds=3600.0, xids=XidTable(suspect=(31,))))
    assert told[-1] == {}


async def test_a_lost_card_keeps_what_was_reported_before_it_was_lost() -> None:
    health, _, told = make(quiet_seconds=60.0)
    health.note_event(CardEvent("GPU-a", "xid", 79))
    health.note_look({}, frozenset({"GPU-a"}))
    assert told[-1] == {"GPU-a": ["not-described", "79"]}
    health.note_look({"GPU-a": CardVitals()}, frozenset())
    assert told[-1] == {}


async def test_an_event_of_no_known_card_is_counted_and_marks_none() -> None:
    health, _, told = make()
    health.note_event(CardEvent("", "xid", 79))
    health.note_event(CardEvent("GPU-a", "ecc"))
    assert told == [{"GPU-a": ["uncorrected"]}]
    assert health.statistics().xids == {("", 79): 1}
    assert health.statistics().ecc_errors == {"GPU-a": 1}


async def test_who_is_watched_is_known() -> None:
    health, _, _ = make()
    assert health.statistics().watch.reason == "not yet"
    health.set_watch(Watch(frozenset({"GPU-a"})))
    assert health.statistics().watch.cards == {"GPU-a"}
