"""Kubeconfig files for the identities that processes in a cluster use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.cluster import certs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.api import Api

LIFETIME_SECONDS = 7200


def service_account_kubeconfig(
    api: Api, directory: Path, namespace: str, name: str, node: str = ""
) -> Path:
    """Ask for a ServiceAccount's token and write it and a kubeconfig that names its file.

    Args:
        api: Asks as the admin.
        directory: The cluster's.
        namespace: Of the ServiceAccount.
        name: Of the ServiceAccount.
        node: The node that the token names, as that of a pod there does; "" for none.
    """
    spec: dict[str, Any] = {"expirationSeconds": LIFETIME_SECONDS}
    if node:
        uid = api.get(api.resource("nodes").path(None, node))["metadata"]["uid"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = api.resource("serviceaccounts").path(namespace, name)
    answer = json.loads(api.request("POST", f"{path}/token", body))
    folder = directory / "certs"
    stem = ".".join(("sa", namespace, name, *filter(None, (node,))))
    token = folder / f"{stem}.token"
    token.write_text(answer["status"]["token"])
    token.chmod(0o600)
    config = folder / f"{stem}.kubeconfig"
    certs.write_kubeconfig(config, folder, {"tokenFile": str(token)}, namespace)
    return config
