"""The model notices what it is there for: allocations that no allocator may ever make."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from hami_dra.contract.names import ATTR_STD_NUMA_NODE, DRIVER_NAME
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, describe_slices
from tests.oracle.model import Model
from tests.oracle.world import ask_for, make_claim, name_slices

if TYPE_CHECKING:
    from collections.abc import Callable

Object = dict[str, Any]

_NODE = SimNode(name="n", cards=make_cards(["A100", "T4", "A100", "A100"]))
_SLICES = name_slices(describe_slices(_NODE, "u"))
_A, _B = (device["name"] for device in _SLICES[0]["spec"]["devices"][:2])


def _give(name: str, device: str, *, share: str = "", memory: str = "10Gi") -> Object:
    claim = make_claim(name, ask_for(memory=memory, cores="0", slots="1"))
    result = {
        "request": "main",
        "driver": DRIVER_NAME,
        "pool": "n",
        "device": device,
        "shareID": share or f"share-{name}",
        "consumedCapacity": {"memory": memory, "cores": "0", "slots": "1"},
    }
    return {**claim, "status": {"allocation": {"devices": {"results": [result]}}}}


def _result(claim: Object) -> Object:
    found: Object = claim["status"]["allocation"]["devices"]["results"][0]
    return found


def _count_two(claim: Object) -> None:
    claim["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2


def _bind_unlike(claim: Object) -> None:
    devices = claim["spec"]["devices"]
    devices["requests"].append({**devices["requests"][0], "name": "other"})
    other = {**_result(claim), "request": "other", "device": _B, "shareID": "o"}
    claim["status"]["allocation"]["devices"]["results"].append(other)
    devices["constraints"] = [{"matchAttribute": f"{DRIVER_NAME}/uuid"}]


_TAMPERING: list[tuple[str, Callable[[Object], object]]] = [
    ("is not published", lambda claim: _result(claim).update(device="gpu-x")),
    ("a shareID without", lambda claim: _result(claim).pop("shareID")),
    ("instead of", lambda claim: _result(claim)["consumedCapacity"].update(memory="9Gi")),
    ("request main has", _count_two),
    ("does not hold", _bind_unlike),
]


def test_what_is_right_is_right() -> None:
    claims = [_give("a", _A), _give("b", _A), _give("c", _B)]
    assert list(Model(_SLICES).list_breaches(claims)) == []


@pytest.mark.parametrize(("said", "tamper"), _TAMPERING, ids=[said for said, _ in _TAMPERING])
def test_a_wrong_claim_is_noticed(said: str, tamper: Callable[[Object], object]) -> None:
    claim = _give("a", _A)
    tamper(claim)
    assert said in " ".join(Model(_SLICES).list_breaches([claim]))


def test_too_much_of_a_card_is_noticed() -> None:
    claims = [_give(f"c{number}", _B, memory="6Gi") for number in range(3)]
    assert "of 16Gi memory are given" in " ".join(Model(_SLICES).list_breaches(claims))


def test_one_share_given_twice_is_noticed() -> None:
    claims = [_give("a", _A, share="s"), _give("b", _B, share="s")]
    assert list(Model(_SLICES).list_breaches(claims)) == ["two results have one shareID"]


def test_a_counter_that_is_passed_is_noticed() -> None:
    slices = copy.deepcopy(_SLICES)
    slices[0]["spec"]["sharedCounters"] = [{"name": "s", "counters": {"n": {"value": "1"}}}]
    for device in slices[0]["spec"]["devices"]:
        device["consumesCounters"] = [{"counterSet": "s", "counters": {"n": {"value": "1"}}}]
    assert list(Model(slices).list_breaches([_give("a", _A), _give("b", _A)])) == []
    found = list(Model(slices).list_breaches([_give("a", _A), _give("c", _B)]))
    assert found == ["counter ('n', 's', 'n'): 2 of 1 are given"]


def test_the_prediction_goes_back_when_a_later_request_has_no_room() -> None:
    spec = ask_for(memory="1Gi", cores="0", slots="1")
    (first,) = spec["devices"]["requests"]
    spec["devices"]["requests"] = [{**first, "name": name} for name in ("a", "b", "c")]
    spec["devices"]["constraints"] = [
        {"matchAttribute": ATTR_STD_NUMA_NODE},
        {"distinctAttribute": f"{DRIVER_NAME}/uuid"},
    ]
    assert Model(_SLICES).predict(spec, [], "n") == []  # two cards on each node
    del spec["devices"]["requests"][2]
    full = _give("x", _B, memory="16Gi")
    picks = Model(_SLICES).predict(spec, [full], "n")
    assert [pick.key[1][-1] for pick in picks] == ["2", "3"]
