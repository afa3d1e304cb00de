"""Templates for cards of any driver, and for shares that belong together."""

from typing import Any

from hami_dra.policy.request import Placement, Share
from hami_dra.policy.target import OUR_CARDS, Target
from hami_dra.policy.templates import build_template

_OTHERS = Target(device_class="npu.example.com", driver="npu.example.com", memory="hbm")


def _devices(template: dict[str, Any]) -> dict[str, Any]:
    devices: dict[str, Any] = template["spec"]["spec"]["devices"]
    return devices


def test_shares_of_a_pod_can_be_bound_to_one_card() -> None:
    shares = [Share("a", 1, memory_mib=100), Share("b", 1, memory_mib=200)]
    devices = _devices(build_template(shares, placement=Placement(one_card=True)))
    uuid = f"{OUR_CARDS.driver}/{OUR_CARDS.uuid}"
    assert devices["constraints"] == [{"matchAttribute": uuid, "requests": ["a", "b"]}]


def test_a_single_share_is_on_one_card_anyway() -> None:
    template = build_template([Share("a", 1, memory_mib=1)], placement=Placement(one_card=True))
    assert "constraints" not in _devices(template)


def test_a_claim_on_another_driver_names_only_what_that_driver_has() -> None:
    share = Share("a", 2, memory_mib=100, cores_percent=30, target=_OTHERS, selectors=("true",))
    devices = _devices(build_template([share], placement=Placement(selectors=("false",))))
    (request,) = devices["requests"]
    assert request["exactly"] == {
        "deviceClassName": "npu.example.com",
        "allocationMode": "ExactCount",
        "count": 2,
        "capacity": {"requests": {"hbm": "100Mi"}},
        "selectors": [{"cel": {"expression": "true"}}],
    }
    assert "constraints" not in devices
    assert "config" not in devices


def test_a_whole_device_of_another_driver_asks_for_no_capacity() -> None:
    devices = _devices(build_template([Share("a", 1, target=_OTHERS)]))
    assert "capacity" not in devices["requests"][0]["exactly"]


def test_an_init_container_does_not_use_the_card_of_another_driver() -> None:
    assert not Share("a", 1, target=_OTHERS).covers(Share("b", 1))
    assert not Share("a", 1, selectors=("x",)).covers(Share("b", 1))
