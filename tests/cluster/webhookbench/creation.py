"""Pods per second through a real API server: no webhook, a constant patch, and ours, in turn."""

from __future__ import annotations

import base64
import json
from statistics import median
from typing import TYPE_CHECKING, Any

from hami_dra.contract.names import LABEL_SHARES, POD_CLAIM_NAME
from tests.cluster.webhookbench.pods import WORKLOADS, build_pod, list_pods
from tests.cluster.webhookbench.report import spread
from tests.cluster.webhookbench.serving import start_webhook

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.cluster import Cluster
    from tests.cluster.installation import Installation
    from tests.cluster.webhookbench.load import Generator
    from tests.cluster.webhookbench.report import Report

PODS = 1000
_WAYS = ("none", "constant", "ours")
_CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_CONSTANT = "127.0.0.1:8444"
_MARK = "bench-constant"
_PATCH = [
    {"op": "add", "path": f"/metadata/labels/{_MARK}", "value": "true"},
    {"op": "add", "path": "/metadata/annotations/bench-original", "value": "x" * 80},
    {
        "op": "add",
        "path": "/spec/resourceClaims",
        "value": [{"name": POD_CLAIM_NAME, "resourceClaimTemplateName": "hami-0"}],
    },
    {
        "op": "add",
        "path": "/spec/containers/0/resources/claims",
        "value": [{"name": POD_CLAIM_NAME, "request": "server"}],
    },
]
"""About what ours says, minus the keys that it removes: those differ from pod to pod."""


def measure(installation: Installation, generator: Generator, rounds: int, report: Report) -> None:
    """Create pods in each way in turn, as often as asked.

    The scheduler and the controllers are stopped, for good: they would take their share of the
    machine from each way alike, only less evenly.
    """
    cluster = installation.cluster
    places = [f"bench-{way}-{number}" for number in range(rounds + 1) for way in _WAYS]
    for name in places:
        cluster.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    for name in places:
        cluster.wait_for("serviceaccounts", "default", lambda item: item is not None, name)
    start_webhook(installation)
    configurations = _Configurations(cluster)
    _start_constant(installation, generator.programs)
    for name in ("kube-scheduler", "kube-controller-manager"):
        cluster.stop_process(name)
    rates: dict[str, list[float]] = {way: [] for way in _WAYS}
    for number in range(rounds + 1):
        bodies = generator.write_bodies("pods", list_pods(PODS, f"{number}"))
        for way in _WAYS:
            configurations.choose(way)
            load = generator.create(f"/api/v1/namespaces/bench-{way}-{number}/pods", bodies, PODS)
            _check(json.loads(load.example), way)
            if number:  # the first round warms everything up
                rates[way].append(load.per_second)
    configurations.choose("ours")
    for name in ("constant", "webhook"):
        cluster.stop_process(name)
    said = {"none": "without a webhook", "constant": "with a constant patch", "ours": "with ours"}
    for way, values in rates.items():
        report.say(f"pods/s created {said[way]}", spread(values))
    each = [ours / other for ours, other in zip(rates["ours"], rates["constant"], strict=True)]
    ratio = median(rates["ours"]) / median(rates["constant"])
    figure = f"{ratio:.2f} ({min(each):.2f} to {max(each):.2f})"
    report.at_least("pods/s, ours to the constant patch", ratio, 0.9, figure)


class _Configurations:
    """Which webhook the API server asks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._path = f"{_CONFIGURATIONS}/hami-dra"
        self._ours: dict[str, Any] = cluster.api.get(self._path)
        self._constant: dict[str, Any] = json.loads(
            json.dumps(self._ours).replace("127.0.0.1:8443", _CONSTANT)
        )
        for body in (self._ours, self._constant):
            for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
                body["metadata"].pop(key, None)

    def choose(self, way: str) -> None:
        """Let the API server ask this one, and return once it does."""
        api = self._cluster.api
        if api.get(f"{_CONFIGURATIONS}?fieldSelector=metadata.name=hami-dra")["items"]:
            api.request("DELETE", self._path)
        if way != "none":
            api.request("POST", _CONFIGURATIONS, self._ours if way == "ours" else self._constant)
        path = "/api/v1/namespaces/bench-none-0/pods?dryRun=All"
        pod = build_pod(WORKLOADS[0], "probe")
        while _tell(json.loads(api.request("POST", path, pod))) != way:
            pass


def _tell(pod: dict[str, Any]) -> str:
    labels = pod["metadata"]["labels"]
    if LABEL_SHARES in labels:
        return "ours"
    return "constant" if _MARK in labels else "none"


def _check(pod: dict[str, Any], way: str) -> None:
    if _tell(pod) != way:
        raise AssertionError(f"the pod went another way than {way}: {pod['metadata']}")


def _start_constant(installation: Installation, programs: Path) -> None:
    cluster = installation.cluster
    certificates = installation.state / "webhook-certs"
    cluster.start_process(
        "constant",
        [
            str(programs / "constantpatch"), "-listen", _CONSTANT,
            "-cert", str(certificates / "tls.crt"), "-key", str(certificates / "tls.key"),
            "-patch", json.dumps(_PATCH),
        ],
        ready=f"https://{_CONSTANT}/healthz",
    )  # fmt: skip


def read_authority(cluster: Cluster) -> bytes:
    """Return the CA that our webhook's certificate is of."""
    found = cluster.api.get(f"{_CONFIGURATIONS}/hami-dra")
    return base64.b64decode(found["webhooks"][0]["clientConfig"]["caBundle"])
