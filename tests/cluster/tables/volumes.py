"""Volumes for the PersistentVolumeClaims of manifests, so that their pods can be scheduled."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.cluster.tables.cases import Object


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
