"""What `hami-dra explain` says of pods, beside what the real scheduler did with them."""

import json
import sys
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pytest

from hami_dra.cli.explaintext import render_report
from hami_dra.contract.names import DRIVER_NAME, LABEL_WEBHOOK_IGNORE
from hami_dra.policy.report import Report
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.installation import Installation
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes

Object = dict[str, Any]
BOUND: Final = frozenset({"allocated", "nothing"})
CARD: Final = "example.com/card"
HOST: Final = "kubernetes.io/hostname"
A100: Final = make_cards(["A100", "A100"], node=1)
T4: Final = make_cards(["T4", "T4"], node=2)
GONE: Final = [{"key": "maintenance", "value": "soon", "effect": "NoSchedule"}]


@dataclass(frozen=True)
class Case:
    """A pod, what the scheduler does with it, and what the explanation must say.

    Attributes:
        body: The pod.
        state: Of the report; "allocated" and "nothing" are those of pods that are bound.
        said: Parts of the report's text.
        other: Object that it needs.
    """

    body: Object
    state: str
    said: tuple[str, ...]
    other: Object | None = None


def placed(body: Object, **spec: Any) -> Object:
    return {**body, "spec": {**body["spec"], **spec}}


def annotated(body: Object, **annotations: str) -> Object:
    names = {f"nvidia.com/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {**body, "metadata": {**body["metadata"], "annotations": names}}


def labelled(body: Object, labels: dict[str, str]) -> Object:
    return {**body, "metadata": {**body["metadata"], "labels": labels}}


def extended(name: str, count: int) -> Object:
    body = pod(name)
    body["spec"]["containers"][0]["resources"] = {"limits": {CARD: count}}
    return body


def with_selector(body: Object, expression: str) -> Object:
    ask = body["spec"]["devices"]["requests"][0]["exactly"]
    ask["selectors"] = [{"cel": {"expression": expression}}]
    return body


ATTRIBUTES: Final = f'device.attributes["{DRIVER_NAME}"]'
CASES: Final = {
    case.body["metadata"]["name"]: case
    for case in [
        # The first two fill half of each A100, and one T4.
        Case(
            placed(pod("half", gpu=2, gpumem=20480, gpucores=60), nodeSelector={HOST: "big"}),
            "allocated", ("its cards are allocated", "memory 20480 MiB", "cores 60"),
        ),
        Case(
            placed(pod("whole", gpu=1), nodeSelector={HOST: "small"}),
            "allocated", ("cores 100, memory 16384 MiB",),
        ),
        Case(
            pod("memory", gpumem=30000), "impossible",
            (
                "0 of 4 nodes can give the cards: ",
                "4 cards: too little free memory (CardInsufficientMemory)",
                "memory: 30000 MiB asked, 20480 MiB of 40960 MiB free",
                "big: main: 0 of 2 cards fit, 1 needed",
                "empty: has no such card",
                "tainted: the pod does not tolerate taint maintenance=soon:NoSchedule",
            ),
        ),
        Case(
            pod("cores", gpumem=100, gpucores=50, gpu=2), "impossible",
            ("cores: 50 asked, 40 of 100 free", "small: main: 1 of 2 cards fit, 2 needed"),
        ),
        Case(
            pod("exclusive", gpu=2), "impossible",
            ("memory: all of it asked, 20480 MiB of 40960 MiB free", "(ExclusiveDevice"),
        ),
        Case(
            annotated(pod("model", gpumem=100), use_gputype="h100"), "impossible",
            ("(CardTypeMismatch)", "(1) is false", 'where (1) ["h100"].exists('),
        ),
        Case(
            annotated(pod("uuid", gpumem=100), use_gpuuuid="GPU-none"), "impossible",
            ("4 cards: not one of the UUIDs asked for (CardUuidMismatch)",),
        ),
        Case(
            placed(
                annotated(pod("numa", gpumem=100, gpu=2), numa_bind="true"),
                nodeSelector={HOST: "big"},
            ),
            "impossible",
            (
                "enough cards fit, but not with different uuid and the same numaNode",
                "nodeSelector: kubernetes.io/hostname is not 'big' there",
            ),
        ),
        Case(
            pod("many", gpumem=10, gpu=3), "impossible",
            ("big: main: 2 of 2 cards fit, 3 needed", "2 nodes: fewer cards than asked for (Node"),
        ),
        Case(
            pod_with_claim("fails", "absent-attribute"), "impossible",
            ("(1) fails: no such key: absent", "a selector fails, and the scheduler gives"),
            with_selector(claim("absent-attribute", memory="1Gi"), f"{ATTRIBUTES}.absent == 1"),
        ),
        Case(
            pod_with_claim("unknown", "unknown-function"), "unclear",
            ("(1) has no answer: the function format cannot be evaluated here",),
            with_selector(claim("unknown-function", memory="1Gi"), '"%d".format([1]) == "2"'),
        ),
        Case(
            pod_with_claim("orphan", "nobody"), "missing",
            ("ResourceClaim nobody does not exist",),
        ),
        Case(
            placed(pod_with_claim("nothing-left", "quarter"), nodeSelector={HOST: "small"}),
            "allocated", ("memory 1024 MiB",),
            claim("quarter", memory="1Gi", cores="10", slots="1"),
        ),
        Case(
            extended("too-many", 2),
            "impossible",
            (
                "claim extended resources (made by the scheduler when it binds the pod)",
                "container-0-request-0: 2 devices of class whole-cards",
                "memory: all of it asked, 20480 MiB of 40960 MiB free",
            ),
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "DeviceClass",
                "metadata": {"name": "whole-cards"},
                "spec": {
                    "extendedResourceName": CARD,
                    "selectors": [{"cel": {"expression": f'device.driver == "{DRIVER_NAME}"'}}],
                },
            },
        ),
        Case(
            placed(
                extended("one-card", 1),
                nodeSelector={HOST: "tainted"},
                tolerations=[{"operator": "Exists"}],
            ),
            "allocated",
            ("of tainted (cores 100, memory 81559 MiB, slots 1)",),
        ),
        Case(
            labelled(pod("ignored", gpu=1), {LABEL_WEBHOOK_IGNORE: "ignore"}), "untouched",
            ("it still has nvidia.com/gpu", "its label hami.io/webhook=ignore"),
        ),
        Case(
            placed(pod("plain"), nodeSelector={HOST: "empty"}), "nothing",
            ("it asks for no devices",),
        ),
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False))


@pytest.fixture(scope="module")
def crowded(cluster: Cluster) -> Cluster:
    """Return a cluster in which the scheduler has had a look at every pod."""
    nodes = [
        SimNode(name="big", cards=A100),
        SimNode(name="small", cards=T4),
        SimNode(name="empty"),
        SimNode(name="tainted", cards=make_cards(["H100"], node=3), taints=tuple(GONE)),
    ]
    create_nodes(cluster.api, nodes)
    Installation.install_admission(cluster)
    for name, case in CASES.items():
        if case.other is not None:
            cluster.apply(text(case.other))
        cluster.apply(text(case.body))
        if case.state != "missing":  # the scheduler does not look at such a pod
            cluster.wait_for("pods", name, was_seen)
    return cluster


def was_seen(item: Object | None) -> bool:
    if item is None:
        return False
    conditions = item.get("status", {}).get("conditions", ())
    return bool(item["spec"].get("nodeName")) or any(
        c["type"] == "PodScheduled" for c in conditions
    )


def explain(cluster: Cluster, *arguments: str) -> tuple[str, int]:
    options = ["--kubeconfig", str(cluster.admin_kubeconfig)]
    done = cluster.run([sys.executable, "-m", "hami_dra", "explain", *arguments, *options])
    return done.stdout + done.stderr, done.returncode


@pytest.fixture(scope="module")
def explained(crowded: Cluster) -> dict[str, tuple[str, int]]:
    """Return what the command prints of every pod, and its exit code, from one process."""
    program = (
        "import json, sys; from click.testing import CliRunner; "
        "from hami_dra.cli.explain import explain; "
        "call = lambda n: CliRunner().invoke(explain, [n, '-ojson', '--kubeconfig', sys.argv[1]]);"
        "print(json.dumps({n: (d.output, d.exit_code) for n in sys.argv[2:] for d in [call(n)]}))"
    )
    done = crowded.run(
        [sys.executable, "-c", program, str(crowded.admin_kubeconfig), *CASES], timeout_seconds=110
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_reasons_are_the_schedulers(
    crowded: Cluster, explained: dict[str, tuple[str, int]], name: str
) -> None:
    case = CASES[name]
    stored = crowded.api.get(f"/api/v1/namespaces/default/pods/{name}")
    assert bool(stored["spec"].get("nodeName")) is (case.state in BOUND)
    output, code = explained[name]
    report = msgspec.json.decode(output, type=Report)
    said = render_report(report)
    assert [part for part in case.said if part not in said] == []
    assert report.state == case.state
    assert code == (0 if case.state in BOUND else 3)


def test_people_see_the_same_as_text(crowded: Cluster) -> None:
    said, code = explain(crowded, "memory")
    assert said.startswith("Pod default/memory: 0 of 4 nodes can give the cards: 4 cards: ")
    assert code == 3
    said, code = explain(crowded, "claim/absent-attribute")
    assert said.startswith("ResourceClaim default/absent-attribute: 0 of 4 nodes")
    said, code = explain(crowded, "nobody")
    assert 'pods "nobody" not found' in said
    assert code == 1
