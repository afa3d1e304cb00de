"""A pod's way from created to container running, stage by stage, with a share and without.

On a real cluster with kubelet and containerd. The API server says when it changed an object by a
watch that runs on the same clock; containerd and our node process say in their logs what they did.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.names import POD_CLAIM_NAME
from tests.cluster.calls import Call, require_done, send_all
from tests.cluster.images import CUDA_TEST
from tests.cluster.nodebench.bed import list_cards
from tests.cluster.stack import Stack
from tests.cluster.states import is_running
from tests.cluster.webhookbench.report import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.cluster.cluster import Cluster
    from tests.cluster.webhookbench.report import Report

Object = dict[str, Any]

_PODS: Final = "/api/v1/namespaces/default/pods"
_CONTAINERD: Final = re.compile(r'time="([^"]+)" level=info msg="(\w+) (.*)"$')
_CROWD: Final = 50
_CARDS: Final = 8
"""Enough for all of them, at ten shares each."""
_LITTLE: Final = {"cpu": "5m", "memory": "8Mi"}
"""So that all of them fit on a node of two cores."""
_SHARE: Final = {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"}
STAGES: Final = (
    "admission and storing",
    "template to claim",
    "scheduling",
    "kubelet sees it",
    "claim prepare",
    "sandbox",
    "container",
    "kubelet tells",
)


@dataclass(frozen=True, slots=True)
class Way:
    """When a pod came where, in seconds since the epoch.

    Attributes:
        asked: Its creation was sent.
        stored: The answer came.
        claimed: Its claim exists; ``stored`` without one.
        bound: It has a node.
        called: Our Prepare began; the sandbox's begin without a claim.
        prepared: It ended; likewise.
        sandbox: containerd began with the sandbox.
        sandboxed: The sandbox runs.
        started: The container runs.
        running: The API server says so.
    """

    asked: float
    stored: float
    claimed: float
    bound: float
    called: float
    prepared: float
    sandbox: float
    sandboxed: float
    started: float
    running: float

    def list_stages(self) -> Mapping[str, float]:
        """Return milliseconds by stage; they add up to the whole way."""
        turns = (
            self.asked, self.stored, self.claimed, self.bound, self.called, self.prepared,
            self.sandboxed, self.started, self.running,
        )  # fmt: skip
        return {
            stage: (later - sooner) * 1000
            for stage, (sooner, later) in zip(STAGES, itertools.pairwise(turns), strict=True)
        }


def measure(cluster: Cluster, count: int, report: Report) -> None:
    """Send pods with a share and without in turn, each once the one before it is gone."""
    stack = Stack.install(cluster, list_cards(_CARDS))
    ways: dict[str, list[Way]] = {"a share": [], "no claim": []}
    for number in range(count + 1):
        for said, found in ways.items():
            name = f"{said.replace(' ', '-')}-{number}"
            way = _follow(stack, name, _SHARE if said == "a share" else {})
            if number:  # the first ones meet empty caches
                found.append(way)
    for stage in (*STAGES, "created to running"):
        figures = {
            said: [
                (way.running - way.asked) * 1000
                if stage == "created to running"
                else way.list_stages()[stage]
                for way in found
            ]
            for said, found in ways.items()
        }
        extra = median(figures["a share"]) - median(figures["no claim"])
        texts = ", ".join(f"{spread(values)} with {said}" for said, values in figures.items())
        report.say(f"ms of a pod's way: {stage}", f"{texts}; {extra:+.0f}")
    _measure_crowd(stack, report)


def _measure_crowd(stack: Stack, report: Report) -> None:
    """Create many pods with a share at the same moment, and see when kubelet's calls come."""
    cluster = stack.cluster
    end = len(cluster.logs("node"))
    bodies = [_describe(f"crowd-{n}", _SHARE, _LITTLE) for n in range(_CROWD)]
    calls = [Call("POST", _PODS, body) for body in bodies]
    require_done(calls, send_all(cluster.api, calls))
    cluster.wait_for_all(
        "pods", lambda pods: len(pods) == _CROWD and all(map(is_running, pods)), timeout_seconds=300
    )
    said = [json.loads(line) for line in cluster.logs("node")[end:].splitlines() if line[:1] == "{"]
    done = [line for line in said if line.get("event") == "prepare" and line["result"] == "ok"]
    own = [float(line["ms"]) - float(line["read_ms"]) for line in done]
    spans = [(_parse(line["timestamp"]), float(line["ms"]) / 1000) for line in done]
    began = sorted(ended - took for ended, took in spans)
    running = max(sum(1 for ended, took in spans if ended - took <= at < ended) for at in began)
    title = f"Prepare, {_CROWD} pods created at once, kubelet's calls: ms besides the GET"
    cuts = quantiles(own, n=100, method="inclusive")
    report.at_most(f"{title}, p50", cuts[49], 5.0, f"{cuts[49]:.1f}")
    report.at_most(f"{title}, p99", cuts[98], 15.0, f"{cuts[98]:.1f} (most {max(own):.1f})")
    report.say(
        f"{_CROWD} pods created at once: s over which the calls came; most at a time",
        f"{began[-1] - began[0]:.1f}; {running}",
    )


def _follow(stack: Stack, name: str, limits: Mapping[str, str]) -> Way:
    cluster = stack.cluster
    ends = {log: len(cluster.logs(log)) for log in ("node", "containerd")}
    asked = time.time()
    cluster.api.request("POST", _PODS, _describe(name, limits))
    stored = time.time()
    claimed, bound, running = stored, 0.0, 0.0
    seen: dict[str, float] = {}

    def note(pod: Object | None) -> bool:
        now = time.time()
        if pod is not None:
            if _has_claims(pod):
                seen.setdefault("claimed", now)
            if pod["spec"].get("nodeName"):
                seen.setdefault("bound", now)
        if is_running(pod):
            seen.setdefault("running", now)
        return is_running(pod)

    cluster.wait_for("pods", name, note, timeout_seconds=60.0)
    if limits:
        claimed = max(stored, seen["claimed"])
    bound, running = max(claimed, seen["bound"]), seen["running"]
    steps = _read_containerd(cluster.logs("containerd")[ends["containerd"] :], name)
    sandbox, sandboxed, started = steps
    called = prepared = sandbox
    if limits:
        prepared, called = _read_prepare(cluster.logs("node")[ends["node"] :], name)
    cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    cluster.wait_for("pods", name, lambda pod: pod is None)
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    return Way(
        asked=asked,
        stored=stored,
        claimed=claimed,
        bound=bound,
        called=called,
        prepared=prepared,
        sandbox=sandbox,
        sandboxed=sandboxed,
        started=started,
        running=running,
    )


def _has_claims(pod: Object) -> bool:
    statuses = pod.get("status", {}).get("resourceClaimStatuses") or ()
    return any(each["name"] == POD_CLAIM_NAME for each in statuses)


def _describe(
    name: str, limits: Mapping[str, str], requests: Mapping[str, str] | None = None
) -> Object:
    container = {
        "name": "main",
        "image": CUDA_TEST,
        "command": ["sh", "-c", "exec sleep 3600"],
        "resources": {
            "limits": {"cpu": "100m", "memory": "64Mi", **limits},
            **({"requests": dict(requests)} if requests else {}),
        },
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _read_prepare(log: str, pod: str) -> tuple[float, float]:
    """Return when our Prepare for a pod ended and when it began."""
    for line in log.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            if said.get("event") == "prepare" and pod in said.get("pods", ()):
                ended = _parse(said["timestamp"])
                return ended, ended - said["ms"] / 1000
    raise LookupError(f"the node process has not prepared anything for pod {pod}")


def _read_containerd(log: str, pod: str) -> tuple[float, float, float]:
    """Return when the sandbox of a pod was begun and done, and when its container ran."""
    times: dict[str, float] = {}
    sandbox = container = ""
    for line in log.splitlines():
        found = _CONTAINERD.search(line)
        if found is None:
            continue
        when, what, rest = _parse(found[1]), found[2], found[3].replace("\\", "")
        if what == "RunPodSandbox" and f'Name:"{pod}"' in rest.replace("name:", "Name:"):
            if "returns" in rest:
                times["sandboxed"] = when
                sandbox = rest.rsplit('"', 2)[1]
            else:
                times["sandbox"] = when
        elif what == "CreateContainer" and sandbox and sandbox in rest and "returns" in rest:
            container = rest.rsplit('"', 2)[1]
        elif what == "StartContainer" and container and container in rest and "returns" in rest:
            times["started"] = when
    return times["sandbox"], times["sandboxed"], times["started"]


def _parse(text: str) -> float:
    return dt.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
