"""ResourceQuotas limit GPUs on a real API server, with two webhook processes and a controller."""

import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hami_dra.contract.names import (
    ANNOTATION_POD_CLAIM,
    ANNOTATION_RESERVATIONS,
    LABEL_MANAGED_BY,
    LABEL_WEBHOOK_IGNORE,
    MANAGED_BY,
)
from hami_dra.contract.quantity import parse_integer
from hami_dra.policy.quota import RESERVED_SECONDS
from tests.cluster.calls import Answer, Call, send_all
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import CommandError
from tests.cluster.installation import Installation, replica_health
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes

GPU, MEMORY, CORES = (f"limits.nvidia.com/{key}" for key in ("gpu", "gpumem", "gpucores"))
REPLICAS = 2
CLIENTS = 32
RELEASE_SECONDS = 20.0

Object = dict[str, Any]


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster without kubelet."""
    return Config(kubernetes=kubernetes, flags=Flags(node=False))


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """Install two webhook processes and a controller beside a few simulated cards."""
    cards = [make_cards(["A100"] * 8, node=number) for number in range(4)]
    nodes = [SimNode(name=f"gpu-{number}", cards=each) for number, each in enumerate(cards)]
    nodes.append(SimNode(name="gpu-t4", cards=make_cards(["T4"], node=9)))
    create_nodes(cluster.api, nodes)
    installed = Installation(cluster)
    installed.apply_manifests()
    installed.start_webhook(replicas=REPLICAS)
    installed.start_controller()
    yield installed
    for name in ("controller", *(f"webhook-{number}" for number in range(REPLICAS))):
        print(cluster.logs(name)[-3000:])


@pytest.fixture
def namespace(installation: Installation, request: pytest.FixtureRequest) -> str:
    """Return a namespace of the test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    installation.cluster.apply(
        text({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    )
    installation.cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, name)
    return name


def quota(namespace: str, *, name: str = "gpus", **hard: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"hard": {f"limits.nvidia.com/{key}": str(each) for key, each in hard.items()}},
    }


def limit(stack: Installation, namespace: str, *, name: str = "gpus", **hard: int) -> None:
    """Make a quota and wait until it is counted."""
    stack.cluster.apply(text(quota(namespace, name=name, **hard)))
    wait_used(stack, namespace, name=name)


def used_of(item: Object | None) -> dict[str, int]:
    """Return the count of a quota by the last part of each key."""
    used = ((item or {}).get("status") or {}).get("used") or {}
    return {key.rpartition("/")[2]: parse_integer(value) for key, value in used.items()}


def wait_used(
    stack: Installation,
    namespace: str,
    *,
    name: str = "gpus",
    timeout_seconds: float = RELEASE_SECONDS,
    **wanted: int,
) -> Object:
    """Return the quota once it counts what is wanted; without a wish, once it counts at all."""

    def holds(item: Object | None) -> bool:
        used = used_of(item)
        return bool(used) and all(used.get(key) == value for key, value in wanted.items())

    found = stack.cluster.wait_for("resourcequotas", name, holds, namespace, timeout_seconds)
    assert found is not None
    return found


def create_all(stack: Installation, pods: list[Object], query: str = "") -> list[Answer]:
    api = stack.cluster.api
    calls = [
        Call("POST", api.resource("pods").path(item["metadata"]["namespace"]) + query, item)
        for item in pods
    ]
    return send_all(api, calls, CLIENTS)


def create(stack: Installation, item: Object, query: str = "") -> Answer:
    api = stack.cluster.api
    path = api.resource(item["kind"]).path(item["metadata"]["namespace"])
    (answer,) = send_all(api, [Call("POST", path + query, item)])
    return answer


def delete_pods(stack: Installation, namespace: str) -> None:
    stack.cluster.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=0", "--force")


def metric(stack: Installation, name: str) -> dict[str, float]:
    """Return a counter's values by its labels, over all replicas."""
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    found: dict[str, float] = {}
    for number in range(REPLICAS):
        url = f"{replica_health(number)}/metrics"
        printed = stack.cluster.run([sys.executable, "-c", program, url]).stdout
        for label, value in re.findall(rf'^{name}{{\w+="(\w+)"}} (\S+)$', printed, re.MULTILINE):
            found[label] = found.get(label, 0) + float(value)
    return found


def test_of_200_pods_at_once_exactly_those_that_fit_are_admitted(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=50_000, gpu=200)
    pods = [pod(f"p-{i}", namespace=namespace, gpu=1, gpumem=1000) for i in range(200)]

    began = time.monotonic()
    answers = create_all(installation, pods)
    seconds = time.monotonic() - began

    admitted = [answer for answer in answers if answer.done]
    refused = [answer for answer in answers if not answer.done]
    writes = metric(installation, "hami_dra_webhook_quota_writes_total")
    print(f"admitted {len(admitted)} of {len(answers)} in {seconds:.2f} s; writes {writes}")
    assert len(admitted) == 50
    assert {answer.status for answer in refused} == {403}
    assert all(
        f"exceeded quota: gpus, requested: {MEMORY}=1000, used: {MEMORY}=50000, limited: "
        f"{MEMORY}=50000" in answer.message
        for answer in refused
    )
    shown = installation.cluster.kubectl("describe", "quota", "gpus", "-n", namespace)
    assert re.search(rf"{re.escape(MEMORY)}\s+50k\s+50k", shown), shown
    # Whether by their pods or by their claims, they count once.
    installation.cluster.wait_for_all(
        "resourceclaims", lambda items: len(items) == 50, namespace, 60.0
    )
    found = wait_used(installation, namespace, gpumem=50_000, gpu=50)

    delete_pods(installation, namespace)
    installation.cluster.wait_for_all("resourceclaims", lambda items: not items, namespace, 60.0)
    began = time.monotonic()
    found = wait_used(installation, namespace, gpumem=0, gpu=0)
    print(f"released {time.monotonic() - began:.2f} s after the last claim was gone")
    assert ANNOTATION_RESERVATIONS not in found["metadata"].get("annotations", {})
    assert create(installation, pod("again", namespace=namespace, gpu=1, gpumem=50_000)).done


def test_pods_that_come_and_go_never_exceed_the_quota(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpu=5)
    api = installation.cluster.api
    path = api.resource("pods").path(namespace)
    claims = api.resource("resourceclaims").path(namespace)

    def come_and_go(number: int) -> int:
        passed = 0
        for turn in range(15):
            name = f"p-{number}-{turn}"
            if create(installation, pod(name, namespace=namespace, gpu=1, gpumem=10)).done:
                passed += 1
                send_all(api, [Call("DELETE", f"{path}/{name}?gracePeriodSeconds=0")])
        return passed

    most = 0
    with ThreadPoolExecutor(16) as threads:
        running = [threads.submit(come_and_go, number) for number in range(16)]
        while not all(each.done() for each in running):
            most = max(most, len(api.get(path)["items"]), len(api.get(claims)["items"]))
        admitted = sum(each.result() for each in running)
    print(f"admitted {admitted} of {16 * 15}, at most {most} at a time")
    assert admitted >= 5
    assert 1 <= most <= 5
    found = wait_used(installation, namespace, gpu=0, timeout_seconds=60.0)
    assert ANNOTATION_RESERVATIONS not in found["metadata"].get("annotations", {})


def test_what_was_counted_stays_counted_until_the_claim_is_there(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=1000, gpucores=100)
    assert create(installation, pod("first", namespace=namespace, gpumem=1000, gpucores=60)).done
    # The annotation was written with the status, which the status subresource lets pass.
    wait_used(installation, namespace, gpumem=1000, gpucores=60)
    assert create(installation, pod("second", namespace=namespace, gpumem=1)).status == 403
    installation.cluster.wait_for_all(
        "resourceclaims", lambda items: bool(items) and "status" in items[0], namespace
    )
    found = wait_used(installation, namespace, gpumem=1000, gpucores=60)
    installation.cluster.wait_for(
        "resourcequotas",
        "gpus",
        lambda item: (
            ANNOTATION_RESERVATIONS not in ((item or {})["metadata"].get("annotations") or {})
        ),
        namespace,
    )
    assert found["spec"]["hard"][MEMORY] == "1k"


def test_a_percentage_and_a_whole_card_count_what_they_may_take(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=100_000)
    half = pod("half", {"gpumem-percentage": 50}, namespace=namespace)
    half["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "gpu-t4"}
    assert create(installation, half, "?dryRun=All").done
    assert create(installation, half).done
    # The worst of both sizes, until the scheduler has chosen the T4 with its 16 GiB.
    wait_used(installation, namespace, gpumem=8192)
    whole = pod("whole", namespace=namespace, gpu=2)
    assert create(installation, whole).done
    wait_used(installation, namespace, gpumem=8192 + 2 * 40_960)
    refused = create(installation, pod("more", {"gpumem-percentage": 50}, namespace=namespace))
    assert f"requested: {MEMORY}=20480, used: {MEMORY}=90112, limited: {MEMORY}=100000" in (
        refused.message
    )


def test_a_dry_run_is_refused_alike_and_counts_nothing(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=1000)
    fits = pod("fits", namespace=namespace, gpumem=1000)
    for _ in range(3):
        assert create(installation, fits, "?dryRun=All").done
    large = create(installation, pod("large", namespace=namespace, gpumem=1001), "?dryRun=All")
    assert "exceeded quota: gpus" in large.message
    assert used_of(wait_used(installation, namespace)) == {"gpumem": 0}
    assert create(installation, fits).done


def test_direct_claims_and_claims_from_own_templates_count(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=5 * 1024, gpu=10)
    api = installation.cluster.api
    path = api.resource("resourceclaims").path(namespace)
    shares = [
        claim(f"c-{i}", namespace=namespace, memory="1Gi", cores="0", slots="1") for i in range(20)
    ]
    answers = send_all(api, [Call("POST", path, item) for item in shares], CLIENTS)
    assert sum(answer.done for answer in answers) == 5
    wait_used(installation, namespace, gpumem=5120, gpu=5)
    kept = next(item for item, answer in zip(shares, answers, strict=True) if answer.done)
    name = kept["metadata"]["name"]
    installation.cluster.kubectl("delete", "resourceclaim", name, "-n", namespace)
    wait_used(installation, namespace, gpumem=4096, gpu=4)

    template = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "mine", "namespace": namespace},
        "spec": {"spec": kept["spec"]},
    }
    assert create(installation, template).done
    for number in range(2):
        body = pod_with_claim(f"t-{number}", "", namespace=namespace)
        body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "mine"}]
        assert create(installation, body).done
    wait_used(installation, namespace, gpumem=5120, gpu=5)
    installation.cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedResourceClaimCreation"
            and "exceeded quota: gpus" in item["message"]
            for item in items
        ),
        namespace,
    )


def test_neither_owners_nor_labels_nor_names_hide_a_claim(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=2000)
    assert create(installation, pod("honest", namespace=namespace, gpumem=1000)).done
    stored = installation.cluster.kubectl_json("get", "pod", "honest", "-n", namespace)
    template = stored["spec"]["resourceClaims"][0]["resourceClaimTemplateName"]

    forged = claim("forged", namespace=namespace, memory="1001Mi", cores="0", slots="1")
    forged["metadata"] |= {
        "labels": {LABEL_MANAGED_BY: MANAGED_BY},
        "annotations": {ANNOTATION_POD_CLAIM: "hami-gpu"},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": "honest",
                "uid": stored["metadata"]["uid"],
                "controller": True,
            }
        ],
    }
    assert "exceeded quota" in create(installation, forged).message

    look_alike: Object = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "look-alike", "namespace": namespace},
        "spec": {
            "metadata": {"labels": {LABEL_MANAGED_BY: MANAGED_BY}},
            "spec": forged["spec"],
        },
    }
    assert "reserved for templates made by admission" in create(installation, look_alike).message
    del look_alike["spec"]["metadata"]
    look_alike["metadata"]["name"] = "hami-gpu-0123456789abcdef"
    assert "reserved for templates made by admission" in create(installation, look_alike).message

    # By hand, a second and a third time; the webhook that rewrites pods is not asked about both.
    for name, labels in (("by-hand", {}), ("unseen", {LABEL_WEBHOOK_IGNORE: "ignore"})):
        body = pod_with_claim(name, "", namespace=namespace)
        body["metadata"]["labels"] = labels
        body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": template}]
        body["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
        answer = create(installation, body)
        assert answer.done == (name == "by-hand"), answer.message
    wait_used(installation, namespace, gpumem=2000)


def test_a_deployment_is_told_why_and_gets_its_pods_when_there_is_room(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpu=2)
    body = pod("ignored", namespace=namespace, gpu=1, gpumem=500)
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": body["spec"]},
        },
    }
    installation.cluster.apply(text(deployment))
    events = installation.cluster.wait_for_all(
        "events",
        lambda items: any(item["reason"] == "FailedCreate" for item in items),
        namespace,
    )
    message = next(item["message"] for item in events if item["reason"] == "FailedCreate")
    assert f"exceeded quota: gpus, requested: {GPU}=1, used: {GPU}=2, limited: {GPU}=2" in message
    wait_used(installation, namespace, gpu=2)
    installation.cluster.apply(text(quota(namespace, gpu=3)))
    wait_used(installation, namespace, gpu=3, timeout_seconds=60.0)


def test_all_quotas_of_a_namespace_hold_and_zero_means_none(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, name="wide", gpumem=9000)
    limit(installation, namespace, name="narrow", gpumem=1500, gpu=5)
    assert create(installation, pod("a", namespace=namespace, gpumem=1000)).done
    assert (
        "exceeded quota: narrow"
        in create(installation, pod("b", namespace=namespace, gpumem=1000)).message
    )
    for name in ("wide", "narrow"):
        wait_used(installation, namespace, name=name, gpumem=1000)
    limit(installation, namespace, name="none", gpu=0)
    refused = create(installation, pod("c", namespace=namespace, gpumem=1))
    assert f"requested: {GPU}=1, used: {GPU}=1, limited: {GPU}=0" in refused.message
    assert create(installation, pod("plain", namespace=namespace)).done


def test_what_exists_before_its_quota_counts(installation: Installation, namespace: str) -> None:
    assert create(installation, pod("old", namespace=namespace, gpumem=1000)).done
    installation.cluster.wait_for_all("resourceclaims", lambda items: len(items) == 1, namespace)
    with pytest.raises(CommandError, match="exceeded quota"):
        # In one go: the quota is not counted yet when the pod comes.
        installation.cluster.apply(
            text(quota(namespace, gpumem=1500), pod("new", namespace=namespace, gpumem=1000))
        )
    wait_used(installation, namespace, gpumem=1000)


def test_what_others_refuse_is_not_counted_for_long(
    installation: Installation, namespace: str
) -> None:
    limit(installation, namespace, gpumem=1000)
    full = quota(namespace, name="pods")
    full["spec"]["hard"] = {"pods": "0"}
    installation.cluster.apply(text(full))
    wait_used(installation, namespace, name="pods", pods=0)
    # Kubernetes counts its own keys after the webhooks were asked.
    refused = create(installation, pod("p", namespace=namespace, gpumem=1000))
    assert "exceeded quota: pods" in refused.message
    assert used_of(wait_used(installation, namespace))["gpumem"] == 1000
    found = wait_used(
        installation, namespace, gpumem=0, timeout_seconds=RESERVED_SECONDS + RELEASE_SECONDS
    )
    assert ANNOTATION_RESERVATIONS not in found["metadata"].get("annotations", {})
