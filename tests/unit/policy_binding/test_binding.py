"""What allocated claims mean on a node."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.policy.binding import BoundDevice, BoundService, bind_claim
from hami_dra.policy.cardrules import CardRules, offer_card
from hami_dra.policy.devices import CardOffer, CardService, name_device, offer_whole
from hami_dra.testing.fakegpus import make_gpu

OFFERS = {
    name_device(gpu.uuid): offer_whole(gpu, split_count=10)
    for gpu in (make_gpu(0), make_gpu(1, memory_mib=16384))
}
FIRST, SECOND = OFFERS
SHARE = "8f6e3c1a-0000-4000-8000-000000000001"


def make_result(**changes: Any) -> dict[str, Any]:
    result = {
        "request": "main",
        "driver": DRIVER_NAME,
        "pool": "node-1",
        "device": FIRST,
        "shareID": SHARE,
        "consumedCapacity": {"memory": "3000Mi", "cores": "30", "slots": "1"},
    }
    return {key: value for key, value in (result | changes).items() if value is not None}


def make_config(
    parameters: Any, *, requests: list[str] | None = None, source: str = "FromClaim"
) -> dict[str, Any]:
    return {
        "source": source,
        "requests": requests or [],
        "opaque": {"driver": DRIVER_NAME, "parameters": parameters},
    }


def limit(memory_mib: int) -> dict[str, Any]:
    return {
        "apiVersion": "gpu.project-hami.io/v1alpha1",
        "kind": "ShareConfig",
        "memoryLimitMiB": memory_mib,
    }


def make_claim(*results: dict[str, Any], config: list[dict[str, Any]] | None = None) -> Any:
    return {
        "metadata": {"namespace": "team", "name": "job", "uid": "uid-1"},
        "status": {"allocation": {"devices": {"results": list(results), "config": config or []}}},
    }


def bind(claim: dict[str, Any]) -> tuple[BoundDevice, ...]:
    return bind_claim(claim, OFFERS, pool="node-1").devices


@pytest.mark.parametrize(
    ("changes", "memory_mib", "cores"),
    [
        ({}, 3000, 30),
        ({"consumedCapacity": {"memory": "3000Mi", "cores": "0", "slots": "1"}}, 3000, 0),
        ({"consumedCapacity": {"memory": "3000Mi", "cores": "100", "slots": "1"}}, 3000, 0),
        ({"consumedCapacity": {"memory": "40Gi", "cores": "30", "slots": "1"}}, 0, 30),
        ({"consumedCapacity": {"memory": "40Gi", "cores": "100", "slots": "10"}}, 0, 0),
        ({"consumedCapacity": {"memory": "16Gi", "cores": "5"}, "device": SECOND}, 0, 5),
        ({"consumedCapacity": {"memory": "1Gi", "cores": "5", "future": "9"}}, 1024, 5),
        ({"consumedCapacity": {"memory": "1073741824"}}, 1024, 0),
        ({"consumedCapacity": None, "shareID": None}, 0, 0),
        ({"consumedCapacity": None}, 0, 0),
        ({"adminAccess": True}, 0, 0),
        ({"adminAccess": True, "consumedCapacity": {"memory": "0"}}, 0, 0),
    ],
)
def test_the_consumed_capacity_of_a_result_is_its_limit(
    changes: dict[str, Any], memory_mib: int, cores: int
) -> None:
    (device,) = bind(make_claim(make_result(**changes)))

    assert (device.memory_mib, device.cores_percent) == (memory_mib, cores)


def test_a_share_counts_with_what_it_consumes() -> None:
    (device,) = bind(make_claim(make_result()))

    counted = (device.consumed_memory_mib, device.consumed_cores, device.consumed_slots)
    assert counted == (3000, 30, 1)
    assert device.controlled


def test_without_sharing_a_result_is_the_whole_card() -> None:
    (device,) = bind(make_claim(make_result(shareID=None, consumedCapacity=None)))

    counted = (device.consumed_memory_mib, device.consumed_cores, device.consumed_slots)
    assert counted == (40960, 100, 10)
    assert device.exclusive
    assert not device.controlled


def test_admin_access_is_neither_limited_nor_counted() -> None:
    (device,) = bind(make_claim(make_result(adminAccess=True)))

    counted = (device.consumed_memory_mib, device.consumed_cores, device.consumed_slots)
    assert counted == (0, 0, 0)
    assert not device.controlled


def test_alternatives_are_known_by_their_request() -> None:
    (device,) = bind(make_claim(make_result(request="main/small")))

    assert device.request == "main"


def test_two_shares_of_one_card_stay_two() -> None:
    other = SHARE.replace("1", "2")
    devices = bind(
        make_claim(
            make_result(request="a"),
            make_result(request="b", shareID=other, consumedCapacity={"memory": "1Gi"}),
        )
    )

    assert [(d.request, d.share_id, d.memory_mib) for d in devices] == [
        ("a", SHARE, 3000),
        ("b", other, 1024),
    ]


def test_results_of_other_drivers_and_pools_are_not_ours() -> None:
    devices = bind(
        make_claim(
            make_result(driver="net.example.com", device="nic0"),
            make_result(pool="node-2"),
            make_result(),
        )
    )

    assert [device.device for device in devices] == [FIRST]


@pytest.mark.parametrize(
    ("config", "memory_mib"),
    [
        ([make_config(limit(1000))], 1000),
        ([make_config(limit(1000), requests=["main"])], 1000),
        ([make_config(limit(1000), requests=["main/small"])], 1000),
        ([make_config(limit(1000), requests=["other"])], 3000),
        ([make_config(limit(1000)), make_config(limit(2000))], 2000),
        ([make_config(limit(1000)), make_config(limit(2000), source="FromClass")], 1000),
        ([make_config(limit(9000), source="FromClass")], 3000),
        ([{"source": "FromClaim", "opaque": {"driver": "other.example.com"}}], 3000),
    ],
)
def test_opaque_configuration_lowers_the_memory(
    config: list[dict[str, Any]], memory_mib: int
) -> None:
    (device,) = bind(make_claim(make_result(request="main/small"), config=config))

    assert device.memory_mib == memory_mib
    assert device.consumed_memory_mib == 3000


def configure(**fields: Any) -> list[dict[str, Any]]:
    kind = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}
    return [make_config({**kind, **fields})]


@pytest.mark.parametrize(
    ("percent", "consumed", "device", "memory_mib"),
    [
        (50, "40Gi", FIRST, 20480),  # a whole card of which half is enforced
        (33, "40Gi", FIRST, 13516),  # rounded down
        (50, "16Gi", SECOND, 8192),
        (50, "8Gi", FIRST, 8192),  # never more than what is consumed
        (100, "40Gi", FIRST, 0),  # all of the card is no limit
    ],
)
def test_a_percentage_is_of_the_card_that_was_given(
    percent: int, consumed: str, device: str, memory_mib: int
) -> None:
    result = make_result(consumedCapacity={"memory": consumed}, device=device)
    (bound,) = bind(make_claim(result, config=configure(memoryLimitPercent=percent)))

    assert bound.memory_mib == memory_mib


def test_a_percentage_of_a_tiny_card_is_still_a_limit() -> None:
    tiny = offer_whole(make_gpu(0, memory_mib=64), split_count=10)
    claim = make_claim(
        make_result(consumedCapacity={"memory": "64Mi"}), config=configure(memoryLimitPercent=1)
    )
    binding = bind_claim(claim, {FIRST: tiny}, pool="node-1")

    assert binding.devices[0].memory_mib == 1


@pytest.mark.parametrize(
    ("scaling", "consumed", "config", "memory_mib"),
    [
        ("2", "60000Mi", None, 60000),
        ("2", "40960Mi", None, 40960),
        ("2", "81920Mi", None, 81920),
        ("2", "81920Mi", {"memoryLimitPercent": 50}, 40960),
        ("0.5", "20480Mi", None, 20480),
        ("1", "60000Mi", None, 0),
    ],
)
def test_the_limit_on_a_scaled_card_follows_what_is_consumed(
    scaling: str, consumed: str, config: dict[str, Any] | None, memory_mib: int
) -> None:
    offer = offer_card(make_gpu(0), CardRules(memory_scaling=Fraction(scaling)))
    claim = make_claim(
        make_result(consumedCapacity={"memory": consumed}),
        config=configure(**config) if config else None,
    )
    (device,) = bind_claim(claim, {FIRST: offer}, pool="node-1").devices

    assert device.memory_mib == memory_mib


def test_a_whole_scaled_card_is_all_that_is_published_of_it() -> None:
    rules = CardRules(memory_scaling=Fraction(2), core_scaling=Fraction(3), split_count=7)
    claim = make_claim(make_result(consumedCapacity=None, shareID=None))
    binding = bind_claim(claim, {FIRST: offer_card(make_gpu(0), rules)}, pool="node-1")
    (device,) = binding.devices

    assert device.exclusive
    assert (device.consumed_memory_mib, device.consumed_cores) == (81920, 300)
    assert device.consumed_slots == 7


def test_how_to_enforce_is_carried_to_the_share() -> None:
    config = configure(
        priority=0, corePolicy="force", disableControl=True, coreCeilingPercent=60, coreBurstMs=5
    )
    (device,) = bind(make_claim(make_result(), config=config))

    assert (device.ceiling_percent, device.burst_ms) == (60, 5)
    assert (device.priority, device.core_policy, device.control_disabled) == (0, "force", True)
    assert device.controlled
    assert device.memory_mib == 3000


def test_oversubscription_is_carried_to_the_share() -> None:
    (device,) = bind(make_claim(make_result(), config=configure(oversubscription=True)))
    (plain,) = bind(make_claim(make_result(), config=configure(priority=0)))

    assert device.oversubscription
    assert device.memory_mib == 3000
    assert not plain.oversubscription


SERVED = {
    name: replace(offer, mps=CardService(pipe_directory="/run/mps", shm_directory="/run/shm"))
    for name, offer in OFFERS.items()
}
SERVED_BY_DEFAULT = {
    name: replace(offer, mps=CardService(pipe_directory="/run/mps", default=True))
    for name, offer in OFFERS.items()
}


@pytest.mark.parametrize(
    ("offers", "asked", "served"),
    [
        (OFFERS, None, False),
        (OFFERS, "hooks", False),
        (SERVED, None, False),
        (SERVED, "hooks", False),
        (SERVED, "mps", True),
        (SERVED_BY_DEFAULT, None, True),
        (SERVED_BY_DEFAULT, "hooks", False),
        (SERVED_BY_DEFAULT, "mps", True),
    ],
)
def test_who_holds_compute_is_the_claims_choice_among_the_nodes(
    offers: dict[str, CardOffer], asked: str | None, *, served: bool
) -> None:
    config = configure(computeBackend=asked) if asked else configure(priority=0)
    (device,) = bind_claim(make_claim(make_result(), config=config), offers, pool="node-1").devices

    assert (device.mps is not None) is served
    if offers is SERVED and served:
        assert device.mps == BoundService(pipe_directory="/run/mps", shm_directory="/run/shm")


def test_mps_where_the_node_has_none_is_refused_with_its_field() -> None:
    with pytest.raises(UserError, match=r"no MPS daemon.*attribute mps") as caught:
        bind(make_claim(make_result(), config=configure(computeBackend="mps")))

    assert caught.value.field == (
        "status.allocation.devices.config[0].opaque.parameters.computeBackend"
    )


@pytest.mark.parametrize(
    ("consumed", "fields", "percent"),
    [
        ("30", {}, 30),
        ("0", {}, 100),
        ("100", {}, 100),
        ("30", {"corePolicy": "disable"}, 100),
        ("30", {"disableControl": True}, 100),
    ],
)
def test_mps_leaves_what_is_limited(consumed: str, fields: dict[str, Any], percent: int) -> None:
    capacity = {"memory": "3000Mi", "cores": consumed, "slots": "1"}
    claim = make_claim(
        make_result(consumedCapacity=capacity), config=configure(priority=0, **fields)
    )

    assert bind(claim)[0].thread_percent == percent


def test_without_configuration_the_defaults_hold() -> None:
    (device,) = bind(make_claim(make_result()))

    assert (device.priority, device.core_policy, device.control_disabled) == (None, None, False)
    assert (device.ceiling_percent, device.burst_ms) == (0, 0)
    assert not device.oversubscription


@pytest.mark.parametrize(
    ("claim", "kind", "words"),
    [
        (
            make_claim(make_result(consumedCapacity={"memory": "0", "cores": "10"})),
            UserError,
            ["team/job", "results[0].consumedCapacity.memory", "adminAccess"],
        ),
        (
            make_claim(make_result(consumedCapacity={"cores": "10"})),
            UserError,
            ["team/job", "results[0].consumedCapacity.memory", "missing"],
        ),
        (
            make_claim(make_result(consumedCapacity={"memory": "1Gi", "cores": "-3"})),
            UserError,
            ["team/job", "results[0].consumedCapacity.cores", "-3"],
        ),
        (
            make_claim(make_result(), config=[make_config({**limit(5), "memroy": 1})]),
            UserError,
            ["team/job", "config[0].opaque.parameters", "memroy"],
        ),
        (
            make_claim(make_result(), config=[make_config(limit(9000))]),
            UserError,
            ["team/job", "memoryLimitMiB", "9000", "3000"],
        ),
        (make_claim(make_result(pool="node-2")), UserError, ["team/job", "node-1"]),
        (make_claim(make_result(device="gpu-gone")), RetryError, ["team/job", "gpu-gone"]),
        ({"metadata": {"namespace": "team", "name": "job"}}, RetryError, ["status.allocation"]),
    ],
)
def test_what_cannot_be_bound_is_said_with_object_and_field(
    claim: dict[str, Any], kind: type[HamiDraError], words: list[str]
) -> None:
    with pytest.raises(kind) as caught:
        bind(claim)

    for word in words:
        assert word in str(caught.value)
