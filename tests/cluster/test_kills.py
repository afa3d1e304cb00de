"""Whatever is killed while thousands of pods are created, none is lost and no template stays."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event
from typing import Any

import pytest

from hami_dra.contract.names import POD_CLAIM_NAME
from tests.cluster.api import Api, Object
from tests.cluster.calls import Call, require_done, send_all
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import CommandError
from tests.cluster.plan import Flags
from tests.cluster.replicas import WEBHOOKS, Replicas
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes

NAMESPACES = tuple(f"chaos-{number}" for number in range(4))
PER_WORKLOAD = 125
WORKLOADS = ("ReplicaSet", "ReplicaSet", "Job")
DIRECT_CLIENTS = 4
PODS = len(NAMESPACES) * (len(WORKLOADS) + 1) * PER_WORKLOAD
TEMPLATE_AGE_SECONDS = 5.0
RETRY_SECONDS = 0.1
DEADLINE_SECONDS = 300.0
KILLS = ("webhook-a", "leader", "webhook-b", "kube-apiserver", "webhook-a", "webhook-b", "leader")

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False, apiserver=("--delete-collection-workers=8",)))


@pytest.fixture(scope="module")
def replicas(cluster: Cluster) -> Iterator[Replicas]:
    """Install two of everything, and nodes with room for all pods."""
    kinds = ["H200"] * 8
    room = {"cpu": "64", "memory": "512Gi", "pods": "1000"}
    create_nodes(
        cluster.api,
        [
            SimNode(
                name=f"node-{number}",
                cards=make_cards(kinds, node=number),
                split_count=100,
                allocatable=room,
            )
            for number in range(4)
        ],
    )
    started = Replicas(cluster, template_age_seconds=TEMPLATE_AGE_SECONDS)
    for name in NAMESPACES:
        cluster.kubectl("create", "namespace", name)
        cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, name)
    yield started
    for name in (*WEBHOOKS, "controller-a", "controller-b"):
        print(cluster.logs(name)[-1500:])


def pod_spec(memory_mib: int) -> Object:
    resources = {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": str(memory_mib)}}
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "restartPolicy": "Never",
        "containers": [{"name": "main", "image": "local/none:1", "resources": resources}],
    }


def workload(kind: str, name: str, memory_mib: int) -> Object:
    labels = {"app": name}
    spec: Object = {"template": {"metadata": {"labels": labels}, "spec": pod_spec(memory_mib)}}
    if kind == "Job":
        spec |= {"parallelism": PER_WORKLOAD, "completions": PER_WORKLOAD}
        return {"apiVersion": "batch/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    spec["template"]["spec"]["restartPolicy"] = "Always"
    spec |= {"replicas": PER_WORKLOAD, "selector": {"matchLabels": labels}}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def create_workloads(api: Api) -> None:
    calls = []
    for namespace in NAMESPACES:
        for number, kind in enumerate(WORKLOADS):
            body = workload(kind, f"w{number}", 500 + 100 * number)
            path = f"/apis/{body['apiVersion']}/namespaces/{namespace}/{kind.lower()}s"
            calls.append(Call("POST", path, body))
    require_done(calls, send_all(api, calls))


class StubbornClient:
    """Creates pods as a careful program does: what may pass later is tried again."""

    def __init__(self, api: Api) -> None:
        self.retries: Counter[str] = Counter()
        self._api = api
        self._connection = api.connect(20)

    def create(self, namespace: str, name: str, memory_mib: int) -> None:
        """Create one pod.

        Raises:
            CommandError: It was refused for good, or not done in time.
        """
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": pod_spec(memory_mib),
        }
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            status, message = self._post(f"/api/v1/namespaces/{namespace}/pods", body)
            # An answer may get lost after the pod was stored.
            if status in {http.client.CREATED, http.client.CONFLICT}:
                return
            if 0 < status < 500 or time.monotonic() > deadline:
                raise CommandError(f"pod {namespace}/{name}: {status} {message}")
            self.retries[message[:90]] += 1
            time.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, body: Object) -> tuple[int, str]:
        try:
            self._connection.request("POST", path, json.dumps(body), self._api.headers("POST"))
            answer = self._connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            self._connection = self._api.connect(20)
            return 0, type(error).__name__
        return answer.status, str(content.get("message", ""))


def create_directly(api: Api) -> Counter[str]:
    """Create a quarter of the pods one by one; return what was tried again, and how often."""
    wanted = [
        (namespace, f"direct-{number}", 800 + 100 * (number % 3))
        for number in range(PER_WORKLOAD)
        for namespace in NAMESPACES
    ]

    def work(first: int) -> Counter[str]:
        with closing(StubbornClient(api)) as client:
            for namespace, name, memory_mib in wanted[first::DIRECT_CLIENTS]:
                client.create(namespace, name, memory_mib)
        return client.retries

    with ThreadPoolExecutor(DIRECT_CLIENTS) as pool:
        return sum(pool.map(work, range(DIRECT_CLIENTS)), Counter())


def count_pods(api: Api) -> int | None:
    """Return the number of pods, ``None`` while nobody answers."""
    try:
        page = api.get("/api/v1/pods?limit=1")
    except (CommandError, OSError, http.client.HTTPException):
        return None
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def wait_pods(api: Api, wanted: int, over: Event) -> int:
    """Return the number of pods once there are so many, or all has come to an end."""
    while (found := count_pods(api)) is None or (found < wanted and not over.is_set()):
        over.wait(RETRY_SECONDS)
    return found


def unallocated(pods: Iterable[Object], claims: Iterable[Object]) -> list[str]:
    """Return the pods that have no node, or no claim that is allocated and reserved for them."""
    held = {
        user["uid"]
        for claim in claims
        if (claim.get("status") or {}).get("allocation")
        for user in claim["status"].get("reservedFor") or ()
    }
    return [
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        for pod in pods
        if not pod["spec"].get("nodeName")
        or pod["metadata"]["uid"] not in held
        or [entry["name"] for entry in pod["spec"]["resourceClaims"]] != [POD_CLAIM_NAME]
    ]


def kill_all(cluster: Cluster, replicas: Replicas, over: Event) -> list[str]:
    """Kill one after the other, evenly over the time in which the pods come."""
    killed = []
    for number, name in enumerate(KILLS):
        found = wait_pods(cluster.api, PODS * number // len(KILLS), over)
        target = replicas.leader() if name == "leader" else name
        if target is not None:
            replicas.kill(target)
        killed.append(f"{target or 'no leader yet'} at {found}")
    return killed


def test_kills_lose_no_pod_and_leak_no_template(cluster: Cluster, replicas: Replicas) -> None:
    began = time.monotonic()
    over = Event()
    create_workloads(cluster.api)
    with ThreadPoolExecutor(2) as pool:
        direct = pool.submit(create_directly, cluster.api)
        killing = pool.submit(kill_all, cluster, replicas, over)
        try:
            retries = direct.result()
            killed = killing.result()
        finally:
            over.set()
    created = time.monotonic()
    pods = cluster.wait_for_all(
        "pods",
        lambda items: len(items) >= PODS and all(item["spec"].get("nodeName") for item in items),
        timeout_seconds=DEADLINE_SECONDS,
    )
    bound = time.monotonic()
    assert len(pods) == PODS
    assert unallocated(pods, cluster.api.items("resourceclaims")) == []
    templates = cluster.api.items("resourceclaimtemplates")
    assert replicas.count_logged("template.deleted") == 0, "every one of them was in use"

    delete_all(cluster)
    left = cluster.wait_for_all(
        "resourceclaimtemplates", lambda items: not items, timeout_seconds=DEADLINE_SECONDS
    )
    report(
        {
            "pods": len(pods),
            "kills": "; ".join(killed),
            "retries of direct clients": dict(retries),
            "created, bound, collected after": [
                round(moment - began, 1) for moment in (created, bound, time.monotonic())
            ],
            "templates used, restored, left": [
                len(templates), replicas.count_logged("template.restored"), len(left)
            ],
        }
    )  # fmt: skip
    claims = cluster.wait_for_all(
        "resourceclaims", lambda items: not items, timeout_seconds=DEADLINE_SECONDS
    )
    assert left == claims == []


def delete_all(cluster: Cluster) -> None:
    for namespace in NAMESPACES:
        for kind in ("apis/apps/v1/{}/replicasets", "apis/batch/v1/{}/jobs", "api/v1/{}/pods"):
            path = "/" + kind.format(f"namespaces/{namespace}")
            policy = {"propagationPolicy": "Background"}
            cluster.api.request("DELETE", path, policy, timeout_seconds=DEADLINE_SECONDS)
    cluster.wait_for_all("pods", lambda items: not items, timeout_seconds=DEADLINE_SECONDS)


def report(figures: dict[str, Any]) -> None:
    for what, value in figures.items():
        print(f"{what}: {value}")


def test_a_rolling_restart_fails_no_creation(cluster: Cluster, replicas: Replicas) -> None:
    over = Event()
    path = f"/api/v1/namespaces/{NAMESPACES[0]}/pods?dryRun=All"
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "p-"},
        "spec": pod_spec(700),
    }

    def work(_: int) -> list[str]:
        told = []
        while not over.is_set():
            (answer,) = send_all(cluster.api, [Call("POST", path, body)], 1)
            told.append(answer.message)
        return told

    with ThreadPoolExecutor(16) as pool:
        told = pool.map(work, range(16))
        try:
            for name in WEBHOOKS:
                replicas.replace(name)
        finally:
            over.set()
        answers = [message for each in told for message in each]
    failed = [message for message in answers if message]
    report({"creations": len(answers), "failed": failed[:3]})
    assert len(answers) > 100
    assert failed == []
