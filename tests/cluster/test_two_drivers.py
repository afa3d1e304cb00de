"""One claim with devices of two drivers: each prepares, describes and removes what is its own."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.testing.simgpu import A100, T4, SimCard
from tests.cluster.cluster import Cluster
from tests.cluster.faults import wait_consistent
from tests.cluster.launch import ROOT
from tests.cluster.manifests import pod, text
from tests.cluster.otherdriver import COUNT, DRIVER
from tests.cluster.stack import Stack

METADATA = "/var/run/kubernetes.io/dra-device-attributes/resourceclaims/mixed"


def make_class(name: str, *expressions: str) -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": " || ".join(expressions)}}]},
    }


def is_card(card: SimCard) -> str:
    uuid = f'device.attributes["{DRIVER_NAME}"].uuid'
    return f'(device.driver == "{DRIVER_NAME}" && {uuid} == "{card.uuid}")'


def is_number(number: int) -> str:
    return f'(device.driver == "{DRIVER}" && device.attributes["{DRIVER}"].number == {number})'


A100_CLASS, NUMBER_CLASS, PAIR_CLASS = "one-card", "one-number", "card-and-number"
CLASSES = (
    make_class(A100_CLASS, is_card(A100)),
    make_class(NUMBER_CLASS, is_number(0)),
    make_class(PAIR_CLASS, is_card(T4), is_number(1)),
)


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Install hami-dra, and another driver beside it."""
    installed = Stack.install(cluster, (A100, T4))
    cluster.start_process(
        "numbers",
        [
            *(sys.executable, "-m", "tests.cluster.otherdriver", installed.node_name),
            str(cluster.admin_kubeconfig),
            str(cluster.kubelet_directory),
            str(cluster.cdi_directory),
        ],
        {"PYTHONPATH": str(ROOT)},
        ready="started",
    )
    cluster.wait_for_all("resourceslices", lambda items: len(devices_of(items, DRIVER)) == COUNT)
    yield installed
    print(cluster.logs("numbers")[-4000:])


def devices_of(slices: list[dict[str, Any]], driver: str) -> list[dict[str, Any]]:
    found = (item["spec"] for item in slices if item["spec"]["driver"] == driver)
    return [device for spec in found for device in spec.get("devices") or ()]


def make_claim() -> dict[str, Any]:
    """Return a claim with a request for us, one for the other, and one that both serve."""
    share = {"requests": {"memory": "1Gi", "cores": "0", "slots": "1"}}
    requests: list[dict[str, Any]] = [
        {"name": "ours", "exactly": {"deviceClassName": A100_CLASS, "capacity": share}},
        {"name": "theirs", "exactly": {"deviceClassName": NUMBER_CLASS}},
        {"name": "both", "exactly": {"deviceClassName": PAIR_CLASS, "allocationMode": "All"}},
    ]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "mixed", "namespace": "default"},
        "spec": {"devices": {"requests": requests}},
    }


def make_pod() -> dict[str, Any]:
    body = pod("mixed")
    (main,) = body["spec"]["containers"]
    body["spec"]["resourceClaims"] = [{"name": "devices", "resourceClaimName": "mixed"}]
    uses: dict[str, dict[str, str]] = {
        **{request: {"request": request} for request in ("ours", "theirs", "both")},
        "all": {},
    }
    body["spec"]["containers"] = [
        {
            **main,
            "name": name,
            "command": ["sleep", "3600"],
            "resources": {"claims": [{"name": "devices", **use}]},
        }
        for name, use in uses.items()
    ]
    return body


def read_documents(stack: Stack, container: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return the devices in each file that a container has, by request and the file's driver."""
    script = f"for each in {METADATA}/*/*; do echo $each; head -n 1 $each; done"
    lines = stack.cluster.exec("mixed", "sh", "-c", script, container=container).stdout.splitlines()
    found = {}
    for path, document in zip(lines[::2], map(json.loads, lines[1::2]), strict=True):
        request, name = path.removeprefix(f"{METADATA}/").split("/")
        (described,) = document["requests"]
        assert described["name"] == request
        assert document["metadata"]["name"] == "mixed"
        found[request, name.removesuffix("-metadata.json")] = [
            (device["driver"], device["name"]) for device in described["devices"]
        ]
    return found


def visible_mib(stack: Stack, container: str) -> int:
    done = stack.cluster.exec("mixed", "cuprobe", "devices", "--json", container=container)
    (card,) = json.loads(done.stdout)
    return int(card["cuda_total_mib"])


def test_each_driver_describes_its_own_devices_of_one_claim(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(*CLASSES, make_claim(), make_pod()))
    cluster.wait_pod_running("mixed")
    item = cluster.kubectl_json("get", "resourceclaim", "mixed")
    devices = {
        (result["request"], result["driver"]): (result["driver"], result["device"])
        for result in item["status"]["allocation"]["devices"]["results"]
    }
    wanted = {key: [device] for key, device in devices.items()}
    assert wanted.keys() == {
        ("ours", DRIVER_NAME),
        ("theirs", DRIVER),
        ("both", DRIVER_NAME),
        ("both", DRIVER),
    }

    # Each container has the files of the requests that it names, of each driver one.
    for request in ("ours", "theirs", "both"):
        expected = {key: found for key, found in wanted.items() if key[0] == request}
        assert read_documents(stack, request) == expected
    assert read_documents(stack, "all") == wanted

    # What is not ours leaves no trace in what we keep and write.
    mine = sorted(device for driver, device in devices.values() if driver == DRIVER_NAME)
    ((record,),) = stack.read_ledger("SELECT CAST(record AS TEXT) FROM claims")
    assert sorted(each["device"] for each in json.loads(record)["binding"]["devices"]) == mine
    reported = cluster.wait_for(
        "resourceclaims",
        "mixed",
        lambda item: len(((item or {}).get("status") or {}).get("devices") or ()) == len(mine),
        "default",
    )
    assert reported is not None
    entries = reported["status"]["devices"]
    assert sorted((e["driver"], e["device"]) for e in entries) == [(DRIVER_NAME, d) for d in mine]
    assert DRIVER not in stack.cdi_file(item).read_text()
    assert visible_mib(stack, "ours") == 1024
    number = cluster.exec("mixed", "sh", "-c", "echo $NUMBER", container="theirs").stdout
    assert number == "number-0\n"

    cluster.kubectl("delete", "pod", "mixed", "--wait", "--grace-period=1")
    cluster.kubectl("delete", "resourceclaim", "mixed")
    wait_consistent(stack)
    names = [path.name for path in cluster.inside(cluster.cdi_directory).iterdir()]
    assert [name for name in names if item["metadata"]["uid"] in name] == []
