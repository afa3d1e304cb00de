"""Runs cases on a control plane with simulated nodes and says what is not as wanted.

Each case has a namespace and nodes of its own, and its pods can go nowhere else (admission plugin
PodNodeSelector), so cases run at the same time. Only the webhook sees all nodes: it reads the
sizes of their cards. So cases run together whose nodes have the same sizes, and before they begin
the webhook has seen exactly these. Our DeviceClasses too are everybody's: cases run together whose
settings make the same ones.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hami_dra.contract.settings import decode_settings
from hami_dra.controller.certdir import ensure_certificates
from hami_dra.controller.manifests import WebhookAddress, render_objects
from tests.cluster.calls import Answer, Call, require_done, send_all
from tests.cluster.config import Config
from tests.cluster.errors import WaitError
from tests.cluster.installation import Installation
from tests.cluster.plan import Flags
from tests.cluster.simnodes import SimNode, create_nodes, delete_nodes
from tests.cluster.tables import webhooks
from tests.cluster.tables.cases import REFUSED_UNREAD, Case, Object
from tests.cluster.tables.nodes import LABEL, build_nodes, shape_nodes
from tests.cluster.tables.objects import count_pods, expand, list_volumes
from tests.cluster.tables.verdicts import Seen, compare, is_decided, is_settled
from tests.golden.rows import load_cases

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.cluster.cluster import Cluster

FLAGS: Final = Flags(node=False, apiserver=("--enable-admission-plugins=PodNodeSelector",))
_SETTINGS_LABEL: Final = "hami-dra-settings"
_NODE_SELECTOR: Final = "scheduler.alpha.kubernetes.io/node-selector"
_FIRST_PORT: Final = 20001
_SETTLE_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.1
_ATTEMPTS: Final = 4
_SLICES: Final = "/apis/resource.k8s.io/v1/resourceslices"


def describe_cluster(kubernetes: str) -> Config:
    """Return the cluster that cases need."""
    return Config(kubernetes=kubernetes, flags=FLAGS)


@dataclass(kw_only=True)
class _Run:
    """One case while it runs."""

    case: Case
    name: str
    nodes: list[SimNode]
    answers: list[Answer] = field(default_factory=list)


class Runner:
    """Runs cases on a cluster of `describe_cluster`."""

    def __init__(self, cluster: Cluster, cases: Sequence[Case]) -> None:
        """Install hami-dra with a webhook for each of the settings that cases have."""
        self._cluster = cluster
        self._api = cluster.api
        self._cases = cases
        self._stack = Installation(cluster)
        self._socket = cluster.directory / "slices.sock"
        self._labels: dict[str, str] = {}
        self._classes: dict[str, tuple[Object, ...]] = {}
        self._current_classes: tuple[Object, ...] = ()
        self._stack.apply_manifests()
        self._serve_webhooks()

    def run(self) -> dict[str, list[str]]:
        """Run every case; return what is not as wanted, by the name of the case."""
        problems: dict[str, list[str]] = {}
        for number, batch in enumerate(self._list_batches()):
            runs = [
                _Run(case=case, name=name, nodes=build_nodes(case.nodes, name))
                for index, case in enumerate(batch)
                for name in [f"b{number}-{index}"]
            ]
            self._replace_classes(self._classes[_key(batch[0].settings)])
            problems |= self._run_batch(runs)
        return problems

    def _list_batches(self) -> list[list[Case]]:
        batches: dict[Any, list[Case]] = {}
        for case in self._cases:
            classes = json.dumps(self._classes[_key(case.settings)], sort_keys=True)
            batches.setdefault((classes, shape_nodes(case.nodes)), []).append(case)
        return [batches[key] for key in sorted(batches, key=lambda key: str(key[0]))]

    # --- webhooks

    def _serve_webhooks(self) -> None:
        certificates = self._stack.state / "webhook-certs"
        ca_bundle = ensure_certificates(certificates, ["127.0.0.1"], dt.datetime.now(tz=dt.UTC))
        by_port: dict[int, Object] = {}
        registrations = load_cases("deviceclasses.yaml")
        for case in self._cases:
            key = _key(case.settings)
            if key not in self._labels:
                port = _FIRST_PORT + len(self._labels)
                self._labels[key] = f"s{port}"
                by_port[port] = case.settings
                objects = _render(port, case.settings, ca_bundle)
                self._classes[key] = tuple(body for body in objects if "webhooks" not in body)
                registrations += [body for body in objects if "webhooks" in body]
        plan = {
            "kubeconfig": self._stack.kubeconfig("hami-dra-webhook"),
            "certificates": str(certificates),
            "socket": str(self._socket),
            "settings": by_port,
        }
        path = self._stack.state / "webhooks.json"
        path.write_text(json.dumps(plan))
        self._cluster.start_process(
            "webhooks",
            [sys.executable, "-m", webhooks.__name__, str(path)],
            ready=f"unix:{self._socket}",
            timeout_seconds=60.0,
        )
        self._create(registrations)

    def _replace_classes(self, classes: tuple[Object, ...]) -> None:
        if classes != self._current_classes:
            old = [
                Call("DELETE", f"{self._path(body)}/{body['metadata']['name']}")
                for body in self._current_classes
            ]
            require_done(old, send_all(self._api, old))
            self._create(classes)
            self._current_classes = classes

    def _create(self, objects: Sequence[Object]) -> None:
        calls = [Call("POST", self._path(body), body) for body in objects]
        require_done(calls, send_all(self._api, calls))

    def _wait_webhooks(self, runs: Sequence[_Run]) -> None:
        """Return once the webhook has seen the nodes of these cases and no others."""
        shapes = frozenset[Any]().union(*(shape_nodes(run.case.nodes) for run in runs))
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_SETTLE_SECONDS)
            channel.connect(str(self._socket))
            channel.sendall(webhooks.encode_shapes(shapes))
            if channel.recv(1) != b"\n":
                raise WaitError("the webhooks ended; see their log")

    # --- a batch

    def _run_batch(self, runs: Sequence[_Run]) -> dict[str, list[str]]:
        nodes = [node for run in runs for node in run.nodes]
        create_nodes(self._api, nodes)
        self._create_namespaces(runs)
        self._wait_webhooks(runs)
        self._create_objects(runs)
        pods = self._wait_settled(runs)
        claims = self._api.items("resourceclaims")
        problems = {run.case.name: self._judge(run, pods, claims) for run in runs}
        self._delete_objects(runs)
        delete_nodes(self._api, [node.name for node in nodes])
        return problems

    def _create_namespaces(self, runs: Iterable[_Run]) -> None:
        calls: list[Call] = []
        for run in runs:
            label = self._labels[_key(run.case.settings)]
            metadata = {
                "name": run.name,
                "labels": {_SETTINGS_LABEL: label},
                "annotations": {_NODE_SELECTOR: f"{LABEL}={run.name}"},
            }
            calls.append(Call("POST", "/api/v1/namespaces", {"metadata": metadata}))
        require_done(calls, send_all(self._api, calls))
        # The controller would make them soon, but not at once.
        accounts = [
            Call(
                "POST",
                f"/api/v1/namespaces/{run.name}/serviceaccounts",
                {"metadata": {"name": "default"}},
            )
            for run in runs
        ]
        send_all(self._api, accounts)

    def _create_objects(self, runs: Sequence[_Run]) -> None:
        """Create the objects of each case in their order, those of different cases at once."""
        plans = [
            [*list_volumes(run.case.objects, run.name), *expand(run.case.objects)] for run in runs
        ]
        for step in range(max(map(len, plans))):
            now = [(run, plan[step]) for run, plan in zip(runs, plans, strict=True) if plan[step:]]
            strict = "?fieldValidation=Strict"
            calls = [Call("POST", self._path(body, run.name) + strict, body) for run, body in now]
            for (run, _), answer in zip(now, send_all(self._api, calls), strict=True):
                run.answers.append(answer)
            waiting = {
                run.name: sum(map(count_pods, plan[: step + 1]))
                for run, plan in zip(runs, plans, strict=True)
                if run.case.in_turn and plan[step:]
            }
            if waiting:
                self._wait_decided(waiting)

    def _wait_decided(self, counts: dict[str, int]) -> None:
        """Return once the scheduler has decided about so many pods in each namespace."""

        def decided(pods: list[Object]) -> bool:
            found = _group(pods)
            return all(
                len(own := found.get(namespace, [])) >= count and all(map(is_decided, own))
                for namespace, count in counts.items()
            )

        with contextlib.suppress(WaitError):  # the verdict says what is not as wanted
            self._api.wait("pods", decided, timeout_seconds=_SETTLE_SECONDS)

    def _wait_settled(self, runs: Sequence[_Run]) -> list[Object]:
        waiting = {run.name: run for run in runs if all(answer.done for answer in run.answers)}

        def settled(pods: list[Object]) -> bool:
            # What is settled stays so, and need not be looked at with every event.
            found = _group(pods)
            for name, run in list(waiting.items()):
                if is_settled(run.case.pods, found.get(name, ())):
                    del waiting[name]
            return not waiting

        for _ in range(_ATTEMPTS):
            with contextlib.suppress(WaitError):  # the verdict says what is not as wanted
                return self._api.wait("pods", settled, timeout_seconds=_SETTLE_SECONDS / _ATTEMPTS)
            self._wake_scheduler({node.name for run in waiting.values() for node in run.nodes})
        return self._api.items("pods")

    def _wake_scheduler(self, nodes: set[str]) -> None:
        """Let the scheduler look again at pods for which it found no room on these nodes.

        Between the write of a claim's status and the end of the pod's PreBind, the scheduler adds
        up the claim's capacity twice (pkg/scheduler/framework/plugins/dynamicresources,
        GatherAllocatedState in 1.36.3 and 1.37.1: what is in flight is added to what the informer
        has). A pod that is tried just then does not fit, and waits for the next event.
        """
        touched = {"metadata": {"annotations": {"looked-at": str(time.monotonic())}}}
        calls = [
            Call("PATCH", f"{_SLICES}/{item['metadata']['name']}", touched)
            for item in self._api.items("resourceslices")
            if item["spec"].get("nodeName") in nodes
        ]
        send_all(self._api, calls)

    def _judge(self, run: _Run, pods: Iterable[Object], claims: Iterable[Object]) -> list[str]:
        refused = [answer for answer in run.answers if not answer.done]
        if run.case.denied:
            return self._judge_denied(run, refused)
        problems = [f"refused: {answer.status} {answer.message}" for answer in refused]
        if not refused:
            seen = Seen(
                pods=_group(pods).get(run.name, []),
                claims={
                    item["metadata"]["name"]: item for item in _group(claims).get(run.name, ())
                },
                nodes=run.nodes,
                prefix=run.name,
            )
            problems += compare(run.case.pods, seen)
        said = [text for answer in run.answers for text in answer.warnings]
        for part in run.case.warns:
            match = next((text for text in said if part in text), None)
            if match is None:
                problems.append(f"no warning has {part!r}: {said}")
            else:
                said.remove(match)
        return problems

    def _judge_denied(self, run: _Run, refused: Sequence[Answer]) -> list[str]:
        if run.case.kind == "row" and any(map(_is_unreadable, refused)):
            return []  # the API server cannot even read what the row is about
        messages = [answer.message for answer in refused]
        if not messages and all(body["kind"] == "Pod" for body in run.case.objects):
            return ["a pod was created"]
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not messages and time.monotonic() < deadline:
            # A controller tries to create the pod, and writes down why it cannot.
            messages = [
                event["message"]
                for event in self._api.items("events", run.name)
                if event["reason"] == "FailedCreate"
            ]
            time.sleep(_POLL_SECONDS)
        parts = [part for part in run.case.denied if not any(part in text for text in messages)]
        if any(pod for pod in self._api.items("pods", run.name)):
            return ["a pod was created"]
        return [f"denied with {messages}, which lacks {parts}"] if parts else []

    def _delete_objects(self, runs: Sequence[_Run]) -> None:
        gone = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
        calls = []
        for run in runs:
            for answer in run.answers:
                if answer.done and answer.body["metadata"].get("namespace") == run.name:
                    name = answer.body["metadata"]["name"]
                    calls.append(
                        Call("DELETE", f"{self._path(answer.body, run.name)}/{name}", gone)
                    )
        send_all(self._api, calls)
        names = {run.name for run in runs}
        left = [
            Call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}", gone)
            for namespace, pods in _group(self._api.items("pods")).items()
            for pod in pods
            if namespace in names
        ]
        send_all(self._api, left)

    def _path(self, body: Object, namespace: str | None = None) -> str:
        return self._api.resource(body["kind"]).path(namespace)


def _is_unreadable(answer: Answer) -> bool:
    return answer.status == REFUSED_UNREAD and "strict decoding error" not in answer.message


def _key(settings: Object) -> str:
    return json.dumps(settings, sort_keys=True)


def _render(port: int, settings: Object, ca_bundle: bytes) -> list[Object]:
    """Return what bootstrap applies, its webhooks for the namespaces with these settings only."""
    address = WebhookAddress(url=f"https://127.0.0.1:{port}")
    objects = []
    for _, body in render_objects(address, ca_bundle, decode_settings(settings)):
        for webhook in body.get("webhooks", ()):
            ours = {"key": _SETTINGS_LABEL, "operator": "In", "values": [f"s{port}"]}
            expressions = webhook["namespaceSelector"]["matchExpressions"]
            webhook["namespaceSelector"] = {"matchExpressions": [*expressions, ours]}
        if "webhooks" in body:
            body["metadata"]["name"] += f"-s{port}"
        objects.append(body)
    return objects


def _group(items: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for item in items:
        found.setdefault(item["metadata"]["namespace"], []).append(item)
    return found
