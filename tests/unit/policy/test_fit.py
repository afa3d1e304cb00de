"""Warnings about what no published card can satisfy."""

from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy.fit import Card, Demand, Need, demands_of_shares, read_cards, warn_unfit
from hami_dra.policy.request import Share

_BIG, _SMALL = Card(40960, 100, 10), Card(16384, 100, 4)
_NODES = [(_BIG, _BIG), (_SMALL,) * 4]


@pytest.mark.parametrize(
    ("need", "says"),
    [
        (Need(1, 99999), "no card of the cluster has 99999 MiB; the largest has 40960 MiB"),
        (Need(1, 1, 101), "no card of the cluster has 101 cores; the most is 100"),
        (Need(1, 1, 1, 11), "no card of the cluster has 11 slots; the most is 10"),
        (Need(3, 20000), "no node has 3 such cards; the most is 2"),
        (Need(5), "no node has 5 such cards; the most is 4"),
    ],
)
def test_what_cannot_fit_says_why(need: Need, says: str) -> None:
    (warning,) = warn_unfit([Demand("it", (need,))], _NODES)
    assert warning == f"it: {says}; the pod will stay Pending until one is added"


@pytest.mark.parametrize("need", [Need(1), Need(2, 40960, 100, 10), Need(4, 16384)])
def test_what_fits_an_empty_card_says_nothing(need: Need) -> None:
    assert warn_unfit([Demand("it", (need,))], _NODES) == []


def test_no_card_has_it_all_at_once() -> None:
    nodes = [(Card(100, 10, 1), Card(10, 100, 1))]
    (warning,) = warn_unfit([Demand("it", (Need(1, 100, 100),))], nodes)
    assert "at once" in warning


def test_one_alternative_is_enough() -> None:
    assert warn_unfit([Demand("it", (Need(1, 99999), Need(1, 1)))], _NODES) == []


def test_a_cluster_without_cards() -> None:
    shares = [Share("c", 1)]
    assert warn_unfit(demands_of_shares(shares), []) == [
        "no node publishes a GPU yet; the pod will stay Pending until one does"
    ]
    assert warn_unfit([], []) == []


def test_cards_are_read_from_our_slices_only() -> None:
    device: dict[str, Any] = {
        "name": "gpu-0",
        "attributes": {"type": {"string": "hami-gpu"}},
        "capacity": {
            "memory": {"value": "40Gi"},
            "cores": {"value": "100"},
            "slots": {"value": "10"},
        },
    }
    odd = {**device, "capacity": {"memory": {"value": "x"}}}
    foreign = {**device, "attributes": {"type": {"string": "mig"}}}
    spec = {"driver": DRIVER_NAME, "devices": [device, odd, foreign]}
    assert read_cards({"spec": spec}) == [_BIG]
    assert read_cards({"spec": {**spec, "driver": "other"}}) == []


def test_shares_that_must_meet_on_a_card_need_one_that_holds_them_all() -> None:
    shares = [Share("a", 1, memory_mib=10000), Share("b", 1, memory_mib=10000)]
    nodes = [(Card(16384, 100, 10),) * 2]
    assert warn_unfit(demands_of_shares(shares), nodes) == []
    (warning,) = warn_unfit(demands_of_shares(shares, one_card=True), nodes)
    assert "the containers together: no card of the cluster has 20000 MiB" in warning
    assert warn_unfit(demands_of_shares(shares[:1], one_card=True), nodes) == []
