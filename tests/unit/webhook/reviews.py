"""Bodies of admission reviews."""

from typing import Any

import msgspec

KINDS = {
    "Pod": {"group": "", "version": "v1", "kind": "Pod"},
    "ResourceClaim": {"group": "resource.k8s.io", "version": "v1", "kind": "ResourceClaim"},
    "ResourceClaimTemplate": {
        "group": "resource.k8s.io",
        "version": "v1",
        "kind": "ResourceClaimTemplate",
    },
}


def build_review(item: Any, *, kind: str = "Pod", **request: Any) -> dict[str, Any]:
    """Return a review of a creation, with fields of ``request`` replaced."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": KINDS[kind],
            "operation": "CREATE",
            "namespace": "team",
            "object": item,
            **request,
        },
    }


def build_pod(**limits: Any) -> dict[str, Any]:
    """Return a pod whose one container has these ``nvidia.com`` limits."""
    resources = {"limits": {f"nvidia.com/{key}": str(value) for key, value in limits.items()}}
    containers = [{"name": "main", "resources": resources}]
    return {"metadata": {"generateName": "p-"}, "spec": {"containers": containers}}


def encode(review: Any) -> bytes:
    """Return the body."""
    return msgspec.json.encode(review)
