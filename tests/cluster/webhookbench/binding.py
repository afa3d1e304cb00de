"""From the first pod created to the last one bound by the real scheduler, with ours and without."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from hami_dra.policy.podplan import plan_pod
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes
from tests.cluster.webhookbench.pods import WORKLOADS, build_pod
from tests.cluster.webhookbench.serving import start_webhook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.installation import Installation
    from tests.cluster.webhookbench.load import Generator
    from tests.cluster.webhookbench.report import Report

PODS = 400
_NODES = 50
_ALLOCATABLE = {"cpu": "512", "memory": "4Ti", "pods": "500"}
_WORKLOADS = tuple(each for each in WORKLOADS if "gpumem" in each.limits)
"""Without the one that wants whole cards, so that there is room for all."""


def measure(
    installation: Installation,
    generator: Generator,
    turns: Sequence[str],
    what: str,
    report: Report,
) -> None:
    """Bind the same pods again and again: rewritten in admission, or with claims written by hand.

    Args:
        installation: With no webhook running.
        generator: Creates the pods.
        turns: "ours" or "direct", each as often as it is to be measured.
        what: The settings of the control plane, for the report.
        report: Takes the times.
    """
    cluster = installation.cluster
    cards = [make_cards(["A100-80G"] * 8, node=number) for number in range(_NODES)]
    create_nodes(
        cluster.api,
        [
            SimNode(name=f"n-{number}", cards=each, allocatable=_ALLOCATABLE)
            for number, each in enumerate(cards)
        ],
    )
    start_webhook(installation)
    seconds: dict[str, list[str]] = {"ours": [], "direct": []}
    for number, way in enumerate(turns):
        namespace = f"bind-{number}"
        cluster.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, namespace)
        pods = [
            build_pod(_WORKLOADS[index % len(_WORKLOADS)], f"p-{index}") for index in range(PODS)
        ]
        if way == "direct":
            pods = _write_claims_out(installation, namespace, pods)
        bodies = generator.write_bodies(namespace, map(msgspec.json.encode, pods))
        began = time.monotonic()
        generator.create(f"/api/v1/namespaces/{namespace}/pods", bodies, PODS)
        cluster.wait_for_all("pods", _all_bound, namespace, 240.0)
        seconds[way].append(f"{time.monotonic() - began:.1f}")
    ours, direct = (" and ".join(seconds[way]) for way in ("ours", "direct"))
    report.say(
        f"s until {PODS} pods are bound, {what}",
        f"{ours} with ours, {direct} with claims written by hand",
    )
    cluster.stop_process("webhook")


def _write_claims_out(
    installation: Installation, namespace: str, pods: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    path = f"/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaimtemplates"
    written: dict[str, dict[str, Any]] = {}
    rewritten = []
    for pod in pods:
        plan = plan_pod(pod)
        if plan is None or plan.template is None:
            raise AssertionError(f"{pod['metadata']['name']} asks for no card")
        written[plan.template["metadata"]["name"]] = plan.template
        rewritten.append(plan.pod)
    for template in written.values():
        installation.cluster.api.request("POST", path, template)
    return rewritten


def _all_bound(pods: list[dict[str, Any]]) -> bool:
    return len(pods) == PODS and all(pod["spec"].get("nodeName") for pod in pods)
