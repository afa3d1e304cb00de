"""Keys, certificates, tokens and kubeconfig files of one cluster, made with the openssl program.

Everything is valid for two days: a cluster lives for minutes.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.cluster.errors import ClusterError
from tests.cluster.wire import NODE_ADDRESS

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "https://127.0.0.1:6443"
SERVICE_ADDRESS = "10.96.0.1"
DAYS = "2"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate to be signed by the cluster's authority."""

    name: str
    subject: str
    usage: str
    names: str = ""


def write_all(folder: Path, node_name: str) -> None:
    """Write the authority, every certificate, the token file and the kubeconfig files."""
    folder.mkdir(mode=0o700)
    _authority(folder)
    wanted = (
        Certificate(
            "apiserver",
            "/CN=kube-apiserver",
            "serverAuth",
            f"IP:127.0.0.1,IP:{NODE_ADDRESS},IP:{SERVICE_ADDRESS},DNS:localhost,"
            "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc",
        ),
        Certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver", "clientAuth"),
        Certificate("kubelet", f"/O=system:nodes/CN=system:node:{node_name}", "clientAuth"),
        Certificate(
            "kubelet-serving",
            f"/CN={node_name}",
            "serverAuth",
            f"IP:{NODE_ADDRESS},DNS:{node_name}",
        ),
    )
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda certificate: _sign(folder, certificate), wanted))
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", folder / "sa.key")
        _openssl("ec", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
    users = {
        "admin": ("admin", "system:masters"),
        "kube-controller-manager": ("system:kube-controller-manager", ""),
        "kube-scheduler": ("system:kube-scheduler", ""),
    }
    rows = []
    for name, (user, group) in users.items():
        token = secrets.token_hex(16)
        (folder / f"{name}.token").write_text(token)
        rows.append(f'{token},{user},{name},"{group}"' if group else f"{token},{user},{name}")
        write_kubeconfig(folder / f"{name}.kubeconfig", folder, {"token": token})
    (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
    pair = {
        "client-certificate": str(folder / "kubelet.crt"),
        "client-key": str(folder / "kubelet.key"),
    }
    write_kubeconfig(folder / "kubelet.kubeconfig", folder, pair)


def write_kubeconfig(path: Path, folder: Path, user: dict[str, Any], namespace: str = "") -> None:
    """Write a kubeconfig file (as JSON, which is YAML) for the API server on loopback."""
    authority = base64.b64encode((folder / "ca.crt").read_bytes()).decode()
    context = {"cluster": "test", "user": "user"} | ({"namespace": namespace} if namespace else {})
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": context}],
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": SERVER, "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": "user", "user": user}],
    }
    path.write_text(json.dumps(content, indent=1))
    path.chmod(0o600)


def _authority(folder: Path) -> None:
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=hami-dra test cluster", "-days", DAYS),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.crt"),
    )


def _sign(folder: Path, certificate: Certificate) -> None:
    names = ("-addext", f"subjectAltName={certificate.names}") if certificate.names else ()
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-days", DAYS),
        *("-subj", certificate.subject, *names),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-addext", "keyUsage=critical,digitalSignature"),
        *("-addext", f"extendedKeyUsage={certificate.usage}"),
        *("-keyout", folder / f"{certificate.name}.key"),
        *("-out", folder / f"{certificate.name}.crt"),
    )


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
