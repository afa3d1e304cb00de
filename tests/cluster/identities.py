"""Kubeconfig files for the identities that processes in a cluster use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cluster import certs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.api import Api

LIFETIME_SECONDS = 7200


def service_account_kubeconfig(api: Api, directory: Path, namespace: str, name: str) -> Path:
    """Ask for a ServiceAccount's token and write it and a kubeconfig that names its file."""
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": LIFETIME_SECONDS},
    }
    path = api.resource("serviceaccounts").path(namespace, name)
    answer = json.loads(api.request("POST", f"{path}/token", body))
    folder = directory / "certs"
    token = folder / f"sa.{namespace}.{name}.token"
    token.write_text(answer["status"]["token"])
    token.chmod(0o600)
    config = folder / f"sa.{namespace}.{name}.kubeconfig"
    certs.write_kubeconfig(config, folder, {"tokenFile": str(token)}, namespace)
    return config
