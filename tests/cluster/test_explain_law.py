"""Random devices and claims: the explanation and the real scheduler agree on what can be placed."""

import random
from typing import Final

import pytest

from hami_dra.policy.explain import PodClaim, Situation, explain
from tests.cluster.api import Object
from tests.cluster.calls import Call, require_done, send_all
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.plan import Flags
from tests.cluster.simnodes import SimNode, create_nodes

DRIVER: Final = "gpu.example.com"
NODES: Final = 60
ROUNDS: Final = 3
RESOURCES: Final = "/apis/resource.k8s.io/v1"
CLAIMS: Final = f"{RESOURCES}/namespaces/default/resourceclaims"
PODS: Final = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False))


def make_device(rng: random.Random, index: int) -> Object:
    memory = rng.choice([16, 40])
    limits = {"min": "0", "max": f"{memory}Gi", "step": "1Mi"}
    capacity: Object = {"memory": {"value": f"{memory}Gi"}, "cores": {"value": "100"}}
    device: Object = {
        "name": f"card{index}",
        "attributes": {
            "uuid": {"string": rng.choice("abc")},
            "numa": {"int": rng.randint(0, 1)},
            "model": {"string": rng.choice(["A100", "T4"])},
        },
        "capacity": capacity,
    }
    if rng.random() < 0.8:
        device["allowMultipleAllocations"] = True
        capacity["memory"]["requestPolicy"] = {"default": f"{memory}Gi", "validRange": limits}
        policy = {"default": "10", "validValues": ["10", "50", "100"]}
        capacity["cores"]["requestPolicy"] = policy
    if rng.random() < 0.1:
        device["taints"] = [{"key": "lost", "effect": "NoSchedule"}]
    return device


def make_ask(rng: random.Random) -> Object:
    ask: Object = {"deviceClassName": "gpu"}
    if rng.random() < 0.1:
        ask["allocationMode"] = "All"
    else:
        ask["count"] = rng.choice([1, 1, 2, 3])
    amounts = {
        "memory": rng.choice(["1Gi", "10Gi", "20Gi", "1G"]),
        "cores": rng.choice(["5", "60"]),
    }
    ask["capacity"] = {"requests": {k: v for k, v in amounts.items() if rng.random() < 0.8}}
    if rng.random() < 0.2:
        expression = f'device.attributes["{DRIVER}"].model == "A100"'
        ask["selectors"] = [{"cel": {"expression": expression}}]
    if rng.random() < 0.2:
        ask["tolerations"] = [{"operator": "Exists"}]
    return ask


def make_spec(rng: random.Random) -> Object:
    requests: list[Object] = []
    for index in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.25:
            # Of "all" devices against a constraint the scheduler makes an error, not the next try.
            options = [{"name": f"s{n}", "count": 1, **make_ask(rng)} for n in range(2)]
            several = [{k: v for k, v in o.items() if k != "allocationMode"} for o in options]
            requests.append({"name": f"r{index}", "firstAvailable": several})
        else:
            requests.append({"name": f"r{index}", "exactly": make_ask(rng)})
    devices: Object = {"requests": requests}
    if rng.random() < 0.4:
        kind = rng.choice(["matchAttribute", "distinctAttribute"])
        devices["constraints"] = [{kind: f"{DRIVER}/{rng.choice(['uuid', 'numa', 'model'])}"}]
    return {"devices": devices}


def make_pod(name: str, node: str) -> Object:
    container = {"name": "main", "image": "none", "resources": {"claims": [{"name": "gpu"}]}}
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "resourceClaims": [{"name": "gpu", "resourceClaimName": name}],
            "containers": [container],
        },
    }


def predict(objects: dict[str, list[Object]], claim: Object, node: str) -> bool:
    situation = Situation(
        subject="",
        pod=make_pod("", node),
        claims=(PodClaim("gpu", "", claim["spec"]),),
        nodes=tuple(item for item in objects["nodes"] if item["metadata"]["name"] == node),
        slices=tuple(objects["resourceslices"]),
        all_claims=tuple(objects["resourceclaims"]),
        classes={item["metadata"]["name"]: item for item in objects["deviceclasses"]},
    )
    report = explain(situation)
    assert report.state in {"possible", "impossible"}, report.summary
    return report.state == "possible"


def was_seen(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(condition["type"] == "PodScheduled" for condition in conditions)


def test_what_is_said_to_be_possible_is_what_the_scheduler_does(cluster: Cluster) -> None:
    rng = random.Random(20260101)  # noqa: S311 - the same examples every time
    api = cluster.api
    nodes = [
        SimNode(
            name=f"node{number}",
            others={DRIVER: tuple(make_device(rng, i) for i in range(rng.randint(1, 4)))},
        )
        for number in range(NODES)
    ]
    create_nodes(api, nodes)
    selector = {"cel": {"expression": f'device.driver == "{DRIVER}"'}}
    device_class = {"metadata": {"name": "gpu"}, "spec": {"selectors": [selector]}}
    calls = [Call("POST", f"{RESOURCES}/deviceclasses", device_class)]
    require_done(calls, send_all(api, calls))
    outcomes: list[bool] = []
    for turn in range(ROUNDS):
        names = {f"turn{turn}-{node.name}": node.name for node in nodes}
        claims = {name: {"metadata": {"name": name}, "spec": make_spec(rng)} for name in names}
        kinds = ("nodes", "resourceslices", "resourceclaims", "deviceclasses")
        objects = {kind: api.items(kind) for kind in kinds}
        said = {name: predict(objects, claims[name], node) for name, node in names.items()}
        for calls in (
            [Call("POST", CLAIMS, claim) for claim in claims.values()],
            [Call("POST", PODS, make_pod(name, node)) for name, node in names.items()],
        ):
            require_done(calls, send_all(api, calls))
        pods = api.wait("pods", lambda items: all(map(was_seen, items)), namespace="default")
        done = {
            pod["metadata"]["name"]: bool(pod["spec"].get("nodeName"))
            for pod in pods
            if pod["metadata"]["name"] in names
        }
        wrong = {n: (said[n], claims[n]["spec"]) for n in names if said[n] is not done[n]}
        assert wrong == {}
        outcomes += done.values()
    # Both outcomes are common, or the law would say nothing.
    assert NODES // 2 < sum(outcomes) < len(outcomes) - NODES // 2
