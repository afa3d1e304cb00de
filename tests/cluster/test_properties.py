"""Laws of admission with a real API server on both sides of the webhook.

Pods go to a namespace that the webhook ignores and to one that it watches: what the API server
takes in the first, it must take in the second too, rewritten, or the webhook says why not.
"""

import http.client
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import LABEL_WEBHOOK_IGNORE
from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.collection import read_use, rebuild_template
from hami_dra.policy.fit import NodeCards, read_cards
from hami_dra.policy.podplan import plan_pod
from tests.cluster.calls import Answer, Call, send_all
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.installation import WEBHOOK_HEALTH, Installation
from tests.cluster.manifests import text
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes
from tests.generate.budget import EXAMPLES, sample
from tests.generate.pods import Pod, pods
from tests.generate.texts import card_lists
from tests.generate.words import CONFIGURATION, EVERYTHING, metadata_keys, resource_keys

CLIENTS = 16
BATCH = 2_000
REAL_SHARE = 20
"""One of so many pods is created for good."""
DENIED = re.compile(
    r'admission webhook "[a-z]+\.gpu\.project-hami\.io" denied the request: Pod watched/'
)
NIGHT_SECONDS = 6 * 3600

pytestmark = pytest.mark.timeout(NIGHT_SECONDS)


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False))


@pytest.fixture(scope="module")
def admission(cluster: Cluster) -> Iterator[Installation]:
    """Install the webhook with every dialect, two namespaces, and nodes with unlike cards."""
    create_nodes(
        cluster.api,
        [SimNode(name="unlike", cards=make_cards(["A100", "T4", "T4", "A10"]))],
    )
    installed = Installation.install_admission(cluster, CONFIGURATION)
    for name, labels in (("watched", {}), ("ignored", {LABEL_WEBHOOK_IGNORE: "ignore"})):
        cluster.apply(
            text(
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name, "labels": labels},
                }
            )
        )
        cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, name)
    yield installed
    print(cluster.logs("webhook")[-2000:])


@pytest.fixture(scope="module")
def settings() -> AdmissionSettings:
    """Return what the webhook was started with."""
    return EVERYTHING


def node_cards(installation: Installation) -> frozenset[NodeCards]:
    """Return what the webhook knows of the nodes."""
    cards = [card for item in installation.slices() for card in read_cards(item)]
    return frozenset({tuple(sorted(cards))})


def create(kind: str, namespace: str, bodies: Sequence[Any], *, dry: bool = True) -> list[Call]:
    group = "/api/v1" if kind == "pods" else "/apis/resource.k8s.io/v1"
    query = "?dryRun=All" if dry else ""
    return [Call("POST", f"{group}/namespaces/{namespace}/{kind}{query}", each) for each in bodies]


def written_part(body: Any) -> Any:
    """Return what a person would submit again of a stored pod."""
    metadata = {
        key: value
        for key, value in body["metadata"].items()
        if key in {"generateName", "annotations", "labels"}
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body["spec"]}


def require_sound(installation: Installation) -> None:
    """Fail if the webhook has met anything that it did not understand."""
    assert "admission.broken" not in installation.cluster.logs("webhook")
    results = dict(
        re.findall(
            r'reviews_total\{.*result="(\w+)"\} ([0-9.]+)', installation.metrics(WEBHOOK_HEALTH)
        )
    )
    bad = ("failed", "malformed", "unavailable")
    assert not any(float(results.get(result, 0)) for result in bad), results


class Judge:
    """Sends pods through both namespaces and collects what breaks a law."""

    def __init__(self, installation: Installation, settings: AdmissionSettings) -> None:
        self.seen: Counter[str] = Counter()
        self.broken: list[tuple[str, Any]] = []
        self._api = installation.cluster.api
        self._settings = settings
        self._nodes = node_cards(installation)

    def judge(self, batch: Sequence[Pod]) -> None:
        """Try a batch of pods."""
        plain = self._send(create("pods", "ignored", batch))
        ours = self._send(create("pods", "watched", batch))
        kept: list[Any] = []
        taken: list[Pod] = []
        for pod, without, answer in zip(batch, plain, ours, strict=True):
            self.seen[f"{_word(without)} without, {_word(answer)} with"] += 1
            if answer.status >= 500:
                self.broken.append((f"{answer.status} {answer.message}", pod))
            elif without.done and not answer.done and not DENIED.search(answer.message):
                self.broken.append((f"refused: {answer.message}", pod))
            if answer.done:
                kept.append(written_part(answer.body))
                taken.append(pod)
        for body, answer in zip(kept, self._send(create("pods", "watched", kept)), strict=True):
            if not answer.done or written_part(answer.body) != body:
                self.broken.append((f"not the same again: {answer.message}", body))
        self._judge_templates(kept)
        self._judge_for_good(taken[::REAL_SHARE])

    def _judge_templates(self, kept: Sequence[Any]) -> None:
        """Templates of dry runs were not written; make them again as the controller would."""
        templates = {}
        for body in kept:
            metadata = {**body["metadata"], "name": "p", "namespace": "watched"}
            use = read_use({**body, "metadata": metadata})
            if use is None or not use.awaits or use.awaits.endswith("0123456789abcdef"):
                continue
            try:
                templates[use.awaits] = rebuild_template(use, self._settings, self._nodes)
            except UserError as error:
                self.broken.append((f"no template any more: {error}", body))
        calls = create("resourceclaimtemplates", "watched", list(templates.values()))
        for template, answer in zip(templates.values(), self._send(calls), strict=True):
            stored = _is_taken(answer)
            self.seen[f"template {'taken' if stored else 'refused'}"] += 1
            if not stored:
                self.broken.append((f"template refused: {answer.message}", template))

    def _judge_for_good(self, taken: Sequence[Pod]) -> None:
        """Create some pods for good, and with them the templates, with the webhook's own rights."""
        answers = self._send(create("pods", "watched", taken, dry=False))
        for pod, answer in zip(taken, answers, strict=True):
            self.seen[f"for good {_word(answer)}"] += 1
            if not answer.done:
                self.broken.append((f"not stored: {answer.message}", pod))
        at_once = {"gracePeriodSeconds": 0}
        self._send(
            [
                Call(
                    "DELETE",
                    f"/api/v1/namespaces/watched/pods/{each.body['metadata']['name']}",
                    at_once,
                )
                for each in answers
                if each.done
            ]
        )

    def _send(self, calls: Sequence[Call]) -> list[Answer]:
        return send_all(self._api, calls, CLIENTS)


def _is_taken(answer: Answer) -> bool:
    """Whether a template is sound; an equal one may have been stored for good before."""
    return answer.done or answer.status == http.client.CONFLICT


def _word(answer: Answer) -> str:
    return "taken" if answer.done else "denied" if DENIED.search(answer.message) else "refused"


def test_what_the_api_server_takes_it_takes_rewritten_or_hears_why_not(
    admission: Installation, settings: AdmissionSettings
) -> None:
    began = time.monotonic()
    judge = Judge(admission, settings)
    for number in range(max(1, EXAMPLES // BATCH)):
        judge.judge(sample(pods(settings), min(BATCH, EXAMPLES), number=number))
        for what, pod in judge.broken[:5]:
            print(f"BROKEN {what[:1000]}\n  {str(pod)[:3000]}")
        assert judge.broken == []
    require_sound(admission)
    for what, count in sorted(judge.seen.items()):
        print(f"{count:7} {what}")
    print(f"{EXAMPLES} pods in {time.monotonic() - began:.0f} s")
    assert judge.seen["taken without, taken with"] > EXAMPLES // 10
    assert judge.seen["taken without, denied with"] > EXAMPLES // 100


def test_every_condition_compiles_whatever_an_annotation_says(
    admission: Installation, settings: AdmissionSettings
) -> None:
    lists = [key for key in metadata_keys() if "use-" in key]
    assert len(lists) >= 30
    wanted: list[tuple[Any, Any]] = []
    refused = 0
    words = resource_keys(settings)
    for number, written in enumerate(sample(card_lists, EXAMPLES // 4)):
        for keys in (words[0], words[number % len(words)]):
            metadata = {"name": "p", "annotations": dict.fromkeys(lists, written)}
            containers = [{"name": "main", "resources": {"limits": {keys[0]: "2"}}}]
            pod = {"metadata": metadata, "spec": {"containers": containers}}
            try:
                plan = plan_pod(pod, settings, nodes=node_cards(admission))
            except UserError:
                refused += 1
                continue
            if plan is not None and plan.template is not None:
                wanted.append((written, plan.template))
    calls = create("resourceclaimtemplates", "watched", [template for _, template in wanted])
    broken = [
        (answer.message[:1000], written[:200])
        for (written, _), answer in zip(
            wanted, send_all(admission.cluster.api, calls, CLIENTS), strict=True
        )
        if not _is_taken(answer)
    ]
    print(f"{len(wanted)} templates compiled, {refused} texts refused by us, {len(broken)} broken")
    assert broken[:5] == []
    assert len(wanted) > EXAMPLES // 8
    require_sound(admission)


def _container(number: int, **more: Any) -> Pod:
    return {"name": f"c{number}", "image": "local/none:1", **more}


def _extreme(name: str, settings: AdmissionSettings) -> Pod:
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    every = {key: "1" for keys in resource_keys(settings) for key in keys}
    spec: dict[str, Any] = {"automountServiceAccountToken": False}
    metadata: dict[str, Any] = {"generateName": "p-"}
    match name:
        case "escapes":  # each is six bytes in the review
            spec["containers"] = [_container(0, resources=gpu, args=["<" * 1_400_000])]
        case "1000 containers":
            spec["containers"] = [_container(i) for i in range(999)]
            spec["containers"].append(_container(999, resources=gpu))
        case "every key in 300 containers":
            spec["containers"] = [_container(i, resources={"limits": every}) for i in range(300)]
        case "no containers":
            spec["containers"] = []
        case "null containers":
            spec["containers"] = None
        case "long name":
            metadata["generateName"] = "p" * 500_000
            spec["containers"] = [_container(0, resources=gpu)]
        case "long container name":
            spec["containers"] = [{**_container(0, resources=gpu), "name": "c" * 500_000}]
        case "many annotations":
            metadata["annotations"] = {f"a.example/{i}": "" for i in range(12_000)}
            spec["containers"] = [_container(0, resources=gpu)]
        case "many labels":
            metadata["labels"] = {f"a{i}": "x" for i in range(20_000)}
            spec["containers"] = [_container(0, resources=gpu)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    "name",
    [
        "escapes", "1000 containers", "every key in 300 containers", "no containers",
        "null containers", "long name", "long container name", "many annotations", "many labels",
    ],
)  # fmt: skip
def test_extreme_pods(admission: Installation, settings: AdmissionSettings, name: str) -> None:
    pod = _extreme(name, settings)
    without, answer = (
        send_all(admission.cluster.api, create("pods", namespace, [pod], dry=False))[0]
        for namespace in ("ignored", "watched")
    )
    print(f"{name}: without {without.status} {without.message[:200]}")
    print(f"{name}: with {answer.status} {answer.message[:300]}")
    assert answer.status < 500
    assert answer.done or DENIED.search(answer.message) or answer.status == without.status
    assert len(answer.message) < 4096 or answer.status == without.status
    require_sound(admission)


def test_a_namespace_without_room_for_templates_denies_with_the_reason(
    admission: Installation,
) -> None:
    cluster = admission.cluster
    hard = {"count/resourceclaimtemplates.resource.k8s.io": "0"}
    body = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": "watched"},
        "spec": {"hard": hard},
    }
    cluster.apply(text(body))
    cluster.wait_for(
        "resourcequotas", "none", lambda item: bool(item and item.get("status")), "watched"
    )
    metadata = {"name": "p"}
    containers = [_container(0, resources={"limits": {"nvidia.com/gpumem": "12345"}})]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    (answer,) = send_all(
        cluster.api,
        create("pods", "watched", [{**pod, "spec": {"containers": containers}}], dry=False),
    )
    assert answer.status == 403
    assert DENIED.search(answer.message)
    assert "exceeded quota: none" in answer.message
    cluster.kubectl("delete", "resourcequota", "none", "-n", "watched")
