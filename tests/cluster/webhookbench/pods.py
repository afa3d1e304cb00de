"""Pods as people write them for HAMi, and the reviews that an API server makes of them.

A review carries what the API server adds before it asks a webhook: defaults, the token's volume,
and ``managedFields``. Together with what inference servers are usually given, that is 3 to 6 KiB.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

Object = dict[str, Any]
NAMESPACE: Final = "team"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the replicas of one workload have in common.

    Attributes:
        name: Begins the names of its pods.
        limits: GPU keys of its main container.
        annotations: HAMi's.
        beside: Number of containers beside the main one.
    """

    name: str
    limits: dict[str, str]
    annotations: dict[str, str]
    beside: int = 0


WORKLOADS: Final = (
    Workload("llm-chat", {"gpu": "1", "gpumem": "8000"}, {}),
    Workload("llm-embed", {"gpu": "1", "gpumem": "3000", "gpucores": "30"}, {}, beside=1),
    Workload("rerank", {"gpu": "1", "gpumem": "2000"}, {"nvidia.com/use-gputype": "A100"}),
    Workload("whisper", {"gpu": "1", "gpumem": "4000"}, {"nvidia.com/nouse-gputype": "T4"}),
    Workload("vision", {"gpu": "2", "gpumem": "6000", "gpucores": "40"}, {}, beside=2),
    Workload("notebook", {"gpu": "1", "gpumem": "1024", "gpucores": "10"}, {}),
    Workload("batch", {"gpu": "1"}, {}),
    Workload("tts", {"gpu": "1", "gpumem": "1500"}, {"hami.io/node-scheduler-policy": "binpack"}),
)


def build_pod(workload: Workload, name: str) -> Object:
    """Return a pod as a person's template has it."""
    limits = {f"nvidia.com/{key}": value for key, value in workload.limits.items()}
    main = {
        "name": "server",
        "image": f"registry.example/{workload.name}/server:1.4.2",
        "args": ["--model", f"/models/{workload.name}", "--port", "8000", "--max-batch", "32"],
        "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
        "env": [
            {"name": f"SETTING_{number}", "value": f"value-of-setting-{number}"}
            for number in range(12)
        ],
        "resources": {
            "limits": {"cpu": "4", "memory": "16Gi", **limits},
            "requests": {"cpu": "2", "memory": "8Gi"},
        },
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5},
        "volumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    beside = [
        {
            "name": f"side-{number}",
            "image": "registry.example/side:2",
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
            "env": [{"name": "UPSTREAM", "value": "http://127.0.0.1:8000"}],
        }
        for number in range(workload.beside)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {"app": workload.name, "pod-template-hash": "7c9d8f6b54"},
            "annotations": {"prometheus.io/scrape": "true", **workload.annotations},
        },
        "spec": {
            "containers": [main, *beside],
            "volumes": [{"name": "models", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 30,
        },
    }


def build_review(workload: Workload, name: str, namespace: str = NAMESPACE) -> Object:
    """Return the review that an API server makes of such a pod's creation."""
    pod = build_pod(workload, name)
    spec = pod["spec"]
    # Another one for each pod, as the API server does.
    volume = f"kube-api-access-{uuid.uuid4().hex[:5]}"
    spec["volumes"].append({"name": volume, "projected": {"sources": [], "defaultMode": 420}})
    token = {"name": volume, "readOnly": True}
    token["mountPath"] = "/var/run/secrets/kubernetes.io/serviceaccount"
    for container in spec["containers"]:
        container["volumeMounts"] = [*container.get("volumeMounts", []), token]
        container["terminationMessagePath"] = "/dev/termination-log"
        container["terminationMessagePolicy"] = "File"
        container["imagePullPolicy"] = "IfNotPresent"
    spec |= {
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute"}
            for key in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }
    pod["metadata"] |= {
        "namespace": namespace,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": _own(spec)},
            }
        ],
    }
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": str(uuid.uuid4()),
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "name": name,
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "3d5a7c1e-0000-4000-8000-000000000000",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    }


def list_pods(count: int, prefix: str) -> Iterator[bytes]:
    """Yield the bodies of ``count`` pods of all workloads in turn, each with its own name."""
    for number in range(count):
        workload = WORKLOADS[number % len(WORKLOADS)]
        yield msgspec.json.encode(build_pod(workload, f"{workload.name}-{prefix}-{number}"))


def list_reviews(count: int) -> Iterator[bytes]:
    """Yield the bodies of ``count`` reviews of all workloads in turn, each with its own name."""
    for number in range(count):
        workload = WORKLOADS[number % len(WORKLOADS)]
        yield msgspec.json.encode(build_review(workload, f"{workload.name}-{number}"))


def list_distinct_reviews(count: int) -> Iterator[bytes]:
    """Yield the bodies of ``count`` reviews, of which no two ask for the same.

    As dry runs, so that no template is written.
    """
    for number in range(count):
        workload = WORKLOADS[number % len(WORKLOADS)]
        own = replace(workload, limits={**workload.limits, "gpumem": str(1000 + number)})
        review = build_review(own, f"{workload.name}-{number}")
        review["request"]["dryRun"] = True
        yield msgspec.json.encode(review)


def list_tenants(namespaces: int, specs: int) -> Iterator[bytes]:
    """Yield the bodies of reviews of every spec in every namespace ``tenant-N``."""
    for spec in range(specs):
        workload = WORKLOADS[spec % len(WORKLOADS)]
        own = replace(workload, limits={**workload.limits, "gpumem": str(500 + spec)})
        for number in range(namespaces):
            yield msgspec.json.encode(build_review(own, f"p-{spec}", f"tenant-{number}"))


def _own(value: Any) -> Any:
    """Return the ``fieldsV1`` of a value, near enough in size."""
    if isinstance(value, dict):
        return {f"f:{key}": _own(item) for key, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict) and "name" in value[0]:
        return {f'k:{{"name":"{item["name"]}"}}': {".": {}, **_own(item)} for item in value}
    return {}
