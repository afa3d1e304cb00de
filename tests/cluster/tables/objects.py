"""What the objects of a manifest bring with them: jobs of cron jobs, pods, volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.cluster.tables.cases import Object


def expand(objects: Iterable[Object]) -> Iterator[Object]:
    """Yield objects, each CronJob followed by what ``kubectl create job --from`` makes of it."""
    for body in objects:
        yield body
        if body["kind"] == "CronJob":
            template = body["spec"]["jobTemplate"]
            metadata = {**template.get("metadata", {}), "name": body["metadata"]["name"]}
            yield {**template, "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}


def count_pods(body: Object) -> int:
    """Return how many pods there will be of an object while none of them becomes ready."""
    spec = body.get("spec", {})
    match body["kind"]:
        case "Pod" | "DaemonSet":
            return 1
        case "Deployment" | "ReplicaSet":
            return int(spec.get("replicas", 1))
        case "StatefulSet":
            in_parallel = spec.get("podManagementPolicy") == "Parallel"
            return int(spec.get("replicas", 1)) if in_parallel else 1
        case "Job":
            return int(min(spec.get("parallelism", 1), spec.get("completions", 1)))
        case _:
            return 0


def list_volumes(objects: Iterable[Object], namespace: str) -> list[Object]:
    """Return a PersistentVolume for every claim that these objects make in a namespace."""
    return [
        _describe(claim, name, namespace) for body in objects for name, claim in _list_claims(body)
    ]


def _list_claims(body: Object) -> Iterator[tuple[str, Object]]:
    if body["kind"] == "PersistentVolumeClaim":
        yield body["metadata"]["name"], body
    if body["kind"] == "StatefulSet":
        for claim in body["spec"].get("volumeClaimTemplates", ()):
            for ordinal in range(body["spec"].get("replicas", 1)):
                yield f"{claim['metadata']['name']}-{body['metadata']['name']}-{ordinal}", claim


def _describe(claim: Object, name: str, namespace: str) -> Object:
    spec = claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}"},
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "storageClassName": spec.get("storageClassName", ""),
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": f"/volumes/{name}"},
        },
    }
