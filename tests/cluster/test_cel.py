"""The table of selectors as the real API server stores it and the real scheduler answers it."""

from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from tests.cluster.api import Object
from tests.cluster.calls import Call, send_all
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.plan import Flags
from tests.cluster.simnodes import SimNode, create_nodes
from tests.golden.selectors import Row, read_table

CLASS = "any-device"
CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
PODS = "/api/v1/namespaces/default/pods"
DEVICES, ROWS = read_table()


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False))


def describe_node(name: str) -> SimNode:
    """Return a node with as many copies of a device as there are rows about it.

    Each row can have a device of its own then, whatever the others were given.
    """
    copies = sum(row.device == name for row in ROWS)
    devices = ({"name": f"device-{number}", **DEVICES[name]} for number in range(copies))
    return SimNode(name=name, devices=tuple(devices))


def describe_claim(name: str, row: Row) -> dict[str, Any]:
    selector = {"cel": {"expression": row.expression}}
    request = {"name": "device", "exactly": {"deviceClassName": CLASS, "selectors": [selector]}}
    return {"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}


def describe_pod(name: str, row: Row) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "resources": {"claims": [{"name": "device"}]}}
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": row.device},
            "resourceClaims": [{"name": "device", "resourceClaimName": name}],
            "containers": [container],
        },
    }


def read_answer(pod: Object) -> str:
    """Return what the scheduler said about a pod, "" as long as it has not."""
    if pod["spec"].get("nodeName"):
        return "true"
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            failed = condition["reason"] == "SchedulerError" or "CEL" in condition["message"]
            return "error" if failed else "false"
    return ""


def test_the_scheduler_gives_the_answers_of_the_table(cluster: Cluster) -> None:
    api = cluster.api
    create_nodes(api, [describe_node(name) for name in DEVICES])
    send_all(api, [Call("POST", CLASSES, {"metadata": {"name": CLASS}, "spec": {}})])
    rows = {f"row-{number}": row for number, row in enumerate(ROWS)}
    claims = send_all(api, [Call("POST", CLAIMS, describe_claim(*item)) for item in rows.items()])
    answers = {
        name: "" if answer.done else "refused" for name, answer in zip(rows, claims, strict=True)
    }
    asked = {name: row for name, row in rows.items() if not answers[name]}
    send_all(api, [Call("POST", PODS, describe_pod(*item)) for item in asked.items()])
    pods = api.wait(
        "pods", lambda items: all(map(read_answer, items)), namespace="default", timeout_seconds=90
    )
    answers |= {str(pod["metadata"]["name"]): read_answer(pod) for pod in pods}
    said = {name: (row.expression, row.want) for name, row in rows.items()}
    assert {name: (row.expression, answers[name]) for name, row in rows.items()} == said
    assert DRIVER_NAME in {item["spec"]["driver"] for item in api.items("resourceslices")}
