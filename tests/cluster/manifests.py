"""Pods and claims that tests apply, as small as they can be."""

import json
from collections.abc import Mapping
from typing import Any

from hami_dra.contract.names import (
    CONFIG_API_VERSION,
    CONFIG_KIND,
    DEVICE_CLASS,
    DRIVER_NAME,
    RESOURCE_GPU,
)

IMAGE = "docker.io/local/cuda-test:1"
HELD_MIB = 2
"""What a pod of ours holds: one granule, the least that the driver takes for an allocation."""


def pod(
    name: str,
    keys: Mapping[str, int | str] | None = None,
    *,
    namespace: str = "default",
    **limits: int | str,
) -> dict[str, Any]:
    """Return a pod that holds `HELD_MIB` until it is told to stop.

    Args:
        name: Of the pod.
        keys: HAMi's keys without their domain, such as ``gpumem-percentage``.
        namespace: Where it goes.
        limits: The same, for keys that are words: ``gpumem=3000``.
    """
    domain = RESOURCE_GPU.removesuffix("gpu")
    resources = {f"{domain}{key}": value for key, value in {**(keys or {}), **limits}.items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            # Ours end by SIGTERM; the first process of a container that is not ours may not.
            "terminationGracePeriodSeconds": 2,
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "command": ["cuprobe", "hold", str(HELD_MIB)],
                    "resources": {"limits": resources},
                }
            ],
        },
    }


def claim(
    name: str,
    *,
    namespace: str = "default",
    parameters: Mapping[str, Any] | None = None,
    **capacity: str,
) -> dict[str, Any]:
    """Return a ResourceClaim with one request called ``gpu``.

    Args:
        name: Of the claim.
        namespace: Where it goes.
        parameters: Fields of the opaque ShareConfig beside its kind.
        capacity: What it asks for, as quantities.
    """
    devices: dict[str, Any] = {
        "requests": [
            {
                "name": "gpu",
                "exactly": {"deviceClassName": DEVICE_CLASS, "capacity": {"requests": capacity}},
            }
        ]
    }
    if parameters is not None:
        config = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND, **parameters}
        devices["config"] = [{"opaque": {"driver": DRIVER_NAME, "parameters": config}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": devices},
    }


def pod_with_claim(name: str, claim_name: str, *, namespace: str = "default") -> dict[str, Any]:
    """Return a pod that uses an existing claim."""
    body = pod(name, namespace=namespace)
    body["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": claim_name}]
    body["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu", "request": "gpu"}]}
    return body


def text(*objects: Mapping[str, Any]) -> str:
    """Return objects as one document stream for kubectl (JSON is YAML)."""
    return "\n---\n".join(json.dumps(item) for item in objects)
