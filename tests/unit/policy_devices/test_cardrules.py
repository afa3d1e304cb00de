"""What a configuration makes of a card."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract.nodeconfig import decode_node_config
from hami_dra.contract.quantity import parse_bytes
from hami_dra.policy.cardrules import CardRules, find_bad_expression, offer_card, resolve_rules
from hami_dra.policy.devices import (
    CardCapacity,
    CardService,
    describe_device,
    describe_offer,
    describe_offers,
)
from hami_dra.testing.fakegpus import make_gpu

CARD = make_gpu(0, memory_mib=40960)


def rules(value: Any, node: str = "node-1") -> CardRules:
    return resolve_rules(decode_node_config(value), node_name=node, split_count=10)


def nvidia(**fields: Any) -> CardRules:
    return rules({"nvidia": fields})


def test_a_nodes_own_entry_wins_field_by_field() -> None:
    file = {
        "nvidia": {"deviceSplitCount": 4, "deviceMemoryScaling": 2},
        "nodeconfig": [{"name": "node-1", "devicesplitcount": 7}, {"name": "node-2"}],
    }
    assert rules(file) == CardRules(split_count=7, memory_scaling=Fraction(2))
    assert rules(file, "node-2") == CardRules(split_count=4, memory_scaling=Fraction(2))
    assert rules({}) == CardRules(split_count=10)


@pytest.mark.parametrize(
    ("fields", "capacity"),
    [
        ({}, (40960, 100, 10)),
        ({"devicememoryscaling": 1.8}, (73728, 100, 10)),
        ({"devicememoryscaling": 0.5, "devicesplitcount": 3}, (20480, 100, 3)),
        ({"devicecorescaling": 0.29}, (40960, 29, 10)),
        ({"devicecorescaling": 2.5}, (40960, 250, 10)),
        ({"devicecorescaling": 0.01}, (40960, 1, 10)),
        ({"preconfigureddevicememory": 7}, (40960, 100, 10)),
    ],
)
def test_capacities_are_scaled_as_they_are_written(
    fields: dict[str, Any], capacity: tuple[int, int, int]
) -> None:
    assert offer_card(CARD, nvidia(**fields)).capacity == CardCapacity(*capacity)


def test_memory_that_the_driver_does_not_say_is_configured_and_scaled() -> None:
    unified = replace(CARD, memory_mib=0)
    offer = offer_card(unified, nvidia(preconfigureddevicememory=122880, devicememoryscaling=0.5))

    assert (offer.gpu.memory_mib, offer.capacity.memory_mib) == (122880, 61440)
    assert offer_card(unified, CardRules()).hidden == (
        "the driver does not say its memory; set preconfigureddevicememory"
    )


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ({"filterdevices": {"uuid": [CARD.uuid]}}, "its UUID is in"),
        ({"filterdevices": {"uuid": [CARD.uuid.lower()]}}, ""),
        ({"filterdevices": {"index": [0]}}, "its index 0 is in"),
        ({"filterdevices": {"index": [1]}}, ""),
        ({"operatingmode": "mig"}, "operatingmode is mig"),
        (
            {"filterdevices": {"cel": ["false", "device.attributes[device.driver].index == 0"]}},
            r"filterdevices.cel[1] is true of it",
        ),
        (
            {
                "filterdevices": {
                    "cel": ["device.capacity[device.driver].memory.isLessThan(quantity('50Gi'))"]
                },
                "devicememoryscaling": 2,
            },
            "",
        ),
        (
            {"filterdevices": {"cel": ["device.attributes[device.driver].colour == 'red'"]}},
            "filterdevices.cel[0] cannot be judged",
        ),
    ],
)
def test_cards_are_hidden_for_a_reason(fields: dict[str, Any], hidden: str) -> None:
    offer = offer_card(CARD, nvidia(**fields))

    assert offer.hidden.startswith(hidden)
    assert bool(offer.hidden) == bool(hidden)
    assert len(describe_offers([offer])) == (not hidden)


def test_an_expression_that_nobody_can_evaluate_is_found_in_the_file() -> None:
    file = {"nodeconfig": [{"name": "n", "filterdevices": {"cel": ["true", "device. =="]}}]}

    assert find_bad_expression(decode_node_config({})) is None
    bad = find_bad_expression(decode_node_config(file))
    assert bad is not None
    assert bad[0] == "nodeconfig[0].filterdevices.cel[1]"


def test_only_a_scaled_card_says_what_it_really_has() -> None:
    assert describe_offer(offer_card(CARD, CardRules())) == describe_device(CARD, split_count=10)
    attributes = describe_offer(offer_card(CARD, nvidia(devicememoryscaling=2)))["attributes"]
    assert attributes["physicalMemoryMiB"] == {"int": 40960}


@given(
    memory_mib=st.integers(1, 2**20),
    memory=st.floats(0.01, 100),
    cores=st.floats(0.01, 100),
    slots=st.integers(1, 10_000),
)
def test_what_is_published_is_what_the_ledger_holds_claims_to(
    memory_mib: int, memory: float, cores: float, slots: int
) -> None:
    offer = offer_card(
        replace(CARD, memory_mib=memory_mib),
        nvidia(devicememoryscaling=memory, devicecorescaling=cores, devicesplitcount=slots),
    )
    for device in describe_offers([offer]):
        capacity = {name: each["value"] for name, each in device["capacity"].items()}
        assert parse_bytes(capacity["memory"]) == offer.capacity.memory_mib << 20
        assert (int(capacity["cores"]), int(capacity["slots"])) == (offer.capacity.cores, slots)
        assert offer.capacity.memory_mib <= memory_mib * memory * 1.000001
        assert offer.capacity.cores >= 1


def test_who_holds_memory_limits_is_chosen_by_node() -> None:
    file = {
        "nvidia": {"memoryBackend": "auto"},
        "nodeconfig": [{"name": "node-1", "memorybackend": "driver"}],
    }

    assert rules(file).memory_backend == "driver"
    assert rules(file, node="node-2").memory_backend == "auto"
    assert rules({}).memory_backend == "hooks"


def test_mps_serves_the_cards_that_are_named_and_they_say_so() -> None:
    mps = {"pipeDirectory": "/run/mps", "uuid": [make_gpu(0).uuid], "default": True}
    chosen = rules({"nvidia": {"mps": mps}})
    served, other = (offer_card(make_gpu(number), chosen) for number in (0, 1))

    assert served.mps == CardService(pipe_directory="/run/mps", default=True)
    assert describe_offer(served)["attributes"]["mps"] == {"bool": True}
    assert other.mps is None
    assert "mps" not in describe_offer(other)["attributes"]
    everywhere = rules({"nvidia": {"mps": {"pipedirectory": "/run/mps"}}})
    assert offer_card(make_gpu(1), everywhere).mps == CardService(pipe_directory="/run/mps")
