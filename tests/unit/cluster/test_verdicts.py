"""What a case wants is compared with everything that an allocation says."""

from typing import Any

import msgspec
import pytest

from hami_dra.contract.names import CONFIG_API_VERSION, CONFIG_KIND, DRIVER_NAME
from hami_dra.policy.devices import name_device
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode
from tests.cluster.tables.cases import Pods
from tests.cluster.tables.verdicts import Seen, compare, is_settled

CARDS = make_cards(["A100", "T4"])
NODE = SimNode(name="c1-a", cards=CARDS)
WANTED = {
    "match": "web-*",
    "node": "a",
    "stored": {"spec": {"schedulerName": "default-scheduler"}},
    "allocated": {
        "main": {
            "memory": "1Gi",
            "cores": 30,
            "product": "A100",
            "at": [0],
            "alternative": "m40960",
            "config": {"priority": 0},
        }
    },
}


def _pod(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web-1", "namespace": "c1"},
        "spec": {"nodeName": "c1-a", "schedulerName": "default-scheduler", **spec},
        "status": {"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "claim"}]},
    }


def _claim() -> dict[str, Any]:
    parameters = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND, "priority": 0}
    result = {
        "request": "main/m40960",
        "driver": DRIVER_NAME,
        "pool": "c1-a",
        "device": name_device(CARDS[0].uuid),
        "consumedCapacity": {"memory": "1024Mi", "cores": "30", "slots": "1"},
    }
    config = {"requests": ["main"], "opaque": {"driver": DRIVER_NAME, "parameters": parameters}}
    return {"status": {"allocation": {"devices": {"results": [result], "config": [config]}}}}


def _compare(wanted: dict[str, Any], *pods: dict[str, Any]) -> list[str]:
    seen = Seen(pods=pods, claims={"claim": _claim()}, nodes=[NODE], prefix="c1")
    return compare([msgspec.convert(wanted, Pods)], seen)


def test_what_is_as_wanted_is_no_problem() -> None:
    assert _compare(WANTED, _pod()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"memory": "1025Mi"}, "gives"),
        ({"memory": "50%"}, "gives"),
        ({"cores": 31}, "gives"),
        ({"slots": 2}, "gives"),
        ({"memory": None, "cores": None}, "gives"),
        ({"cards": 2}, "has 1 devices instead of 2"),
        ({"product": "T4"}, "instead of ['T4']"),
        ({"at": [1]}, "is on ['a/0'] instead of ['a/1']"),
        ({"at": ["b/0"]}, "instead of ['b/0']"),
        ({"node": "b"}, "instead of on node b"),
        ({"alternative": "m16384"}, "took alternative 'm40960'"),
        ({"config": {}}, "carries the configuration {'priority': 0}"),
        ({"config": {"priority": 1}}, "instead of {'priority': 1}"),
        ({"driver": "npu.example.com"}, "instead of npu.example.com"),
    ],
)
def test_an_allocation_that_differs_is_a_problem(changes: dict[str, Any], problem: str) -> None:
    main = {**WANTED["allocated"]["main"], **changes}  # type: ignore[index]
    (found,) = _compare({**WANTED, "allocated": {"main": main}}, _pod())
    assert problem in found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"count": 2}, "1 pods match 'web-*' instead of 2"),
        ({"node": "b"}, "is bound to node a instead of b"),
        ({"stored": {"spec": {"schedulerName": "x"}}}, "spec.schedulerName is"),
        ({"allocated": {}}, "has ['main'] allocated instead of []"),
        ({"allocated": {"other": {}}}, "instead of ['other']"),
        ({"pending": ["room"]}, "is bound"),
        ({"untaken": True}, "is bound"),
    ],
)
def test_a_pod_that_differs_is_a_problem(changes: dict[str, Any], problem: str) -> None:
    (found,) = _compare({**WANTED, **changes}, _pod())
    assert problem in found


def test_pods_that_nobody_expects_are_a_problem() -> None:
    other = {**_pod(), "metadata": {"name": "api-1", "namespace": "c1"}}
    assert _compare(WANTED, _pod(), other) == ["pod api-1 is not expected"]


def test_waiting_pods_have_to_wait_for_the_reason_that_is_wanted() -> None:
    said = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: room"}
    pod = {**_pod(nodeName=""), "status": {"conditions": [said]}}
    wanted = {"pending": ["room"]}
    assert _compare(wanted, pod) == []
    assert _compare({"pending": ["memory"]}, pod) == [
        "pod web-1: 'memory' is not in '0/1 nodes are available: room'"
    ]
    assert _compare(WANTED, pod) == ["pod web-1: is not bound: 0/1 nodes are available: room"]
    assert is_settled([msgspec.convert(wanted, Pods)], [pod])
    assert not is_settled([msgspec.convert({"pending": ["memory"]}, Pods)], [pod])
    assert not is_settled([msgspec.convert(WANTED, Pods)], [pod])
