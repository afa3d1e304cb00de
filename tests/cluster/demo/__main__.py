"""The demo itself: every line it prints comes from the cluster, and every claim is checked."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from hami_dra.contract.names import (
    ANNOTATION_ORIGINAL_REQUEST,
    CAPACITY_CORES,
    CAPACITY_MEMORY,
    CAPACITY_SLOTS,
    DEVICE_CLASS,
    RESOURCE_CORES,
    RESOURCE_GPU,
    RESOURCE_MEMORY,
)
from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.demo.page import CheckError, Page
from tests.cluster.errors import ClusterError
from tests.cluster.launch import ROOT
from tests.cluster.stack import Stack

EXAMPLE = ROOT / "examples" / "01-unchanged-hami-pod" / "pod.yaml"
GRANTED_MIB = 3000
SECOND_MIB = 8000


def main() -> int:
    """Run the demo; 0 when everything it says was seen to hold."""
    page = Page()
    try:
        page.step("A Kubernetes of its own: etcd, control plane, kubelet, containerd, runc")
        page.say(
            "In namespaces of its own on this machine; it ends, and leaves nothing, with the demo."
        )
        with Cluster.start() as cluster:
            _tell(page, cluster)
    except CheckError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except ClusterError as error:
        print(f"\nThe demo could not run: {error}", file=sys.stderr)
        return 2
    print(f"\n   {page.checks} statements checked in {page.elapsed_seconds:.0f} s; all hold.\n")
    return 0


def _tell(page: Page, cluster: Cluster) -> None:
    version = cluster.kubectl_json("version")["serverVersion"]["gitVersion"]
    page.check(f"the cluster answers: Kubernetes {version}, one node, Ready", bool(version))
    stack = Stack.install(cluster, (A100, T4))
    _show_cards(page, stack)
    pod = _apply_unchanged_pod(page, stack)
    claim = _show_objects(page, stack, pod)
    _show_node(page, stack, claim)
    _show_container(page, stack)
    _share_the_card(page, stack, claim)
    _delete(page, stack)


def _show_cards(page: Page, stack: Stack) -> None:
    page.step("Two unlike cards, published by the node plugin for the stock scheduler")
    page.say("Each card is a device with three capacities; a claim consumes a part of each.")
    page.command("kubectl get resourceslices")
    for device in stack.devices():
        name = device["attributes"]["productName"]["string"]
        capacity = {key: value["value"] for key, value in device["capacity"].items()}
        page.quote(
            f"{device['name']}  {name}\n"
            f"    memory {capacity[CAPACITY_MEMORY]}, cores {capacity[CAPACITY_CORES]} %, "
            f"slots {capacity[CAPACITY_SLOTS]}; many claims may share it: "
            f"{device.get('allowMultipleAllocations', False)}"
        )
    page.check("both cards can be shared", len(stack.devices()) == 2)


def _apply_unchanged_pod(page: Page, stack: Stack) -> dict[str, Any]:
    page.step("A pod written for HAMi, applied unchanged")
    page.command(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}")
    page.quote(EXAMPLE.read_text())
    stack.cluster.apply(EXAMPLE.read_text())
    pod = stack.cluster.wait_pod_running("share")
    page.check("the pod is running", pod["status"]["phase"] == "Running")
    return pod


def _show_objects(page: Page, stack: Stack, pod: dict[str, Any]) -> dict[str, Any]:
    page.step("What the webhook made of it: the pod as stored")
    page.say("The GPU keys are gone. In their place the container refers to a request of a claim.")
    container = pod["spec"]["containers"][0]
    page.show(
        {
            "metadata": {
                "annotations": {
                    key: value
                    for key, value in pod["metadata"]["annotations"].items()
                    if key == ANNOTATION_ORIGINAL_REQUEST
                }
            },
            "spec": {
                "resourceClaims": pod["spec"]["resourceClaims"],
                "containers": [{"name": container["name"], "resources": container["resources"]}],
            },
        }
    )
    template_name = pod["spec"]["resourceClaims"][0]["resourceClaimTemplateName"]

    page.step("The template it refers to, named by the hash of its content: replicas share it")
    page.command(f"kubectl get resourceclaimtemplate {template_name} -o yaml")
    template = stack.cluster.kubectl_json("get", "resourceclaimtemplate", template_name)
    page.show({"metadata": {"name": template_name}, "spec": template["spec"]})

    page.step("The claim that Kubernetes made from it, and what the stock scheduler allocated")
    page.say("The pod owns it: when the pod goes, Kubernetes removes the claim.")
    claim = stack.claim_of("share")
    page.command(f"kubectl get resourceclaim {claim['metadata']['name']} -o yaml")
    allocation = claim["status"]["allocation"]
    page.show(
        {
            "metadata": {
                "name": claim["metadata"]["name"],
                "ownerReferences": [
                    {"kind": owner["kind"], "name": owner["name"]}
                    for owner in claim["metadata"]["ownerReferences"]
                ],
            },
            "status": {"allocation": {"devices": {"results": allocation["devices"]["results"]}}},
        }
    )
    consumed = allocation["devices"]["results"][0]["consumedCapacity"]
    page.check(
        "consumed: 3000 MiB, 30 % of the compute, one slot of ten",
        consumed == {CAPACITY_MEMORY: "3000Mi", CAPACITY_CORES: "30", CAPACITY_SLOTS: "1"},
        consumed,
    )
    return claim


def _show_node(page: Page, stack: Stack, claim: dict[str, Any]) -> None:
    page.step("What the node plugin prepared: the CDI file that containerd injects")
    page.say("The limits travel as a read-only file, `grant`; `region` is where the container's")
    page.say("processes count what they use; libvgpu.so holds them to it. The card's device node")
    page.say("and the driver's libraries come from the node's own file of its cards.")
    path = stack.cdi_file(claim)
    page.say(f"{path.name} ({DEVICE_CLASS})")
    spec = json.loads(path.read_text())
    page.quote(_shortened(json.dumps(spec, indent=2), stack.cluster.directory))


def _show_container(page: Page, stack: Stack) -> None:
    page.step("Inside the container: the share looks like a card of 3000 MiB")
    page.command("kubectl exec share -- ls /dev")
    nodes = stack.cluster.exec("share", "ls", "/dev").stdout.split()
    page.quote("  ".join(name for name in nodes if name.startswith("nvidia")))
    page.command("kubectl exec share -- cuprobe devices")
    text = stack.cluster.exec("share", "cuprobe", "devices").stdout
    page.quote(text)
    seen = _devices(stack, "share")
    page.check(
        "one device, 3000 MiB by CUDA and 3000 MiB by NVML",
        [(d["cuda_total_mib"], d["nvml_total_mib"]) for d in seen] == [(GRANTED_MIB, GRANTED_MIB)],
        seen,
    )
    page.command("kubectl exec share -- cuprobe alloc 2900 200")
    page.quote(stack.cluster.exec("share", "cuprobe", "alloc", "2900", "200").stdout)
    results = _allocations(stack, "share", "2900", "200")
    page.check(
        "2900 MiB are granted; 200 MiB more get CUDA_ERROR_OUT_OF_MEMORY",
        results == ["CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY"],
        results,
    )
    page.step("On the host: the card is as large as it ever was")
    page.command("python -c 'nvmlDeviceGetMemoryInfo(...)'   # nvidia-ml-py, on the node")
    host = stack.host_cards()
    for card in host:
        page.quote(f"{card['name']}: {card['total_mib']} MiB")
    page.check(
        "40960 MiB and 16384 MiB by NVML on the host",
        [card["total_mib"] for card in host] == [A100.memory_mib, T4.memory_mib],
        host,
    )


def _share_the_card(page: Page, stack: Stack, first: dict[str, Any]) -> None:
    page.step("A second pod shares the same card")
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"]["name"] = "neighbour"
    limits = {RESOURCE_GPU: 1, RESOURCE_MEMORY: SECOND_MIB, RESOURCE_CORES: 50}
    container = manifest["spec"]["containers"][0]
    container["resources"]["limits"] = limits
    container["args"] = ["exec cuprobe hold 1"]
    page.say("The same pod, called neighbour, with other limits:")
    page.show({"resources": {"limits": limits}})
    stack.cluster.apply(yaml.safe_dump(manifest))
    stack.cluster.wait_pod_running("neighbour")
    second = stack.claim_of("neighbour")
    cards = {
        claim["metadata"]["name"]: claim["status"]["allocation"]["devices"]["results"][0]["device"]
        for claim in (first, second)
    }
    page.show(cards)
    page.check("both claims hold shares of one card", len(set(cards.values())) == 1, cards)
    totals = {pod: _devices(stack, pod)[0]["cuda_total_mib"] for pod in ("share", "neighbour")}
    page.check(
        f"each sees its own share: {totals}",
        totals == {"share": GRANTED_MIB, "neighbour": SECOND_MIB},
        totals,
    )


def _delete(page: Page, stack: Stack) -> None:
    page.step("Both are deleted, and nothing of them is left")
    there = stack.leftovers()
    counts = {
        "claims": len(there.claims),
        "CDI files": len(there.cdi_files),
        "grants": len(there.grants),
        "ledger rows": len(there.ledger_rows),
    }
    page.say("Before:")
    page.show({**counts, "mounts": len(there.mounts)})
    page.check(
        "two pods, two of each, and their mounts",
        set(counts.values()) == {2} and bool(there.mounts),
        there,
    )
    page.command("kubectl delete pod share neighbour")
    page.quote(stack.cluster.kubectl("delete", "pod", "share", "neighbour", "--wait"))
    stack.cluster.wait_for_all("resourceclaims", lambda items: not items)
    left = stack.leftovers()
    page.check("no ResourceClaim", not left.claims, left.claims)
    page.check("no CDI file of a claim", not left.cdi_files, left.cdi_files)
    page.check("no grant and no region on the node", not left.grants, left.grants)
    page.check("no row in the node's ledger", not left.ledger_rows, left.ledger_rows)
    page.check("no mount", not left.mounts, left.mounts)


def _devices(stack: Stack, pod: str) -> list[dict[str, Any]]:
    done = stack.cluster.exec(pod, "cuprobe", "devices", "--json")
    devices: list[dict[str, Any]] = json.loads(done.stdout)
    return devices


def _allocations(stack: Stack, pod: str, *mib: str) -> list[str]:
    done = stack.cluster.exec(pod, "cuprobe", "alloc", "--json", *mib)
    return [str(item["result"]) for item in json.loads(done.stdout)["allocations"]]


def _shortened(text: str, directory: Path) -> str:
    """Leave the cluster's temporary directory out of what a person reads."""
    return text.replace(str(directory), "…")


if __name__ == "__main__":
    raise SystemExit(main())
