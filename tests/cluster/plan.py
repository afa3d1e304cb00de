"""What runs in a cluster, with which flags, and in which order.

Every flag that is not obvious was needed on a machine with cgroup v1 and without CAP_SYS_RESOURCE,
or keeps a program from writing outside the cluster's directory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cluster.certs import SERVER
from tests.cluster.images import PAUSE
from tests.cluster.wire import API_SOCKET, NODE_ADDRESS, Component, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.cluster.toolchain import Tools

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POD_SUBNET = "10.88.0.0/16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What a test may change about the cluster's programs.

    Without ``node`` there is no containerd and no kubelet: pods are scheduled and stay Pending, on
    the nodes of `simnodes`, which nobody declares unreachable.
    """

    node: bool = True
    node_name: str = "node-1"
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    apiserver: tuple[str, ...] = ()
    controller_manager: tuple[str, ...] = ()
    scheduler: tuple[str, ...] = ()
    kubelet: tuple[str, ...] = ()
    kubelet_config: Mapping[str, Any] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Directories of the cluster's that are file systems of their own, with mount options."""


def write_configuration(directory: Path, tools: Tools, flags: Flags) -> None:
    """Write the files that the programs read; the certificates are not among them."""
    for name in ("logs", "pids", "cdi", "cni", "pod-logs", "kubelet", "etcd", "volume-plugins"):
        (directory / name).mkdir()
    (directory / "etcd").chmod(0o700)
    (directory / "containerd.toml").write_text(_containerd(directory, tools))
    (directory / "kubelet.json").write_text(json.dumps(_kubelet(directory, flags), indent=1))
    (directory / "cni" / "10-bridge.conflist").write_text(json.dumps(_network(directory), indent=1))
    (directory / "resolv.conf").write_text(f"nameserver {NODE_ADDRESS}\n")


def make_plan(
    directory: Path, tools: Tools, flags: Flags, archives: list[Path], *, lifeline: bool
) -> Plan:
    """Return the plan for a cluster whose configuration is written."""
    env = {"PATH": f"{tools.search_path}:{SYSTEM_PATH}", "HOME": str(directory)}
    components = _list_control_plane(directory, tools, flags, env)
    if flags.node:
        components += _list_node(directory, tools, flags, archives, env)
    return Plan(
        directory=str(directory),
        cgroup=directory.name,
        hosts_name=flags.node_name,
        lifeline=lifeline,
        relays={str(directory / API_SOCKET): ("127.0.0.1", 6443)},
        components=components,
        tmpfs={str(directory / name): options for name, options in flags.tmpfs.items()},
    )


def _list_control_plane(
    directory: Path, tools: Tools, flags: Flags, env: Mapping[str, str]
) -> tuple[Component, ...]:
    return (
        Component(
            name="etcd",
            argv=(str(tools.etcd / "etcd"), *_etcd(directory)),
            env=env,
            ready="http://127.0.0.1:2379/health",
        ),
        Component(
            name="kube-apiserver",
            argv=(str(tools.kubernetes / "kube-apiserver"), *_apiserver(directory, flags)),
            env=env,
            after=("etcd",),
            ready=f"{SERVER}/readyz",
        ),
        Component(
            name="kube-controller-manager",
            argv=(str(tools.kubernetes / "kube-controller-manager"), *_manager(directory, flags)),
            env=env,
            after=("kube-apiserver",),
            ready="https://127.0.0.1:10257/healthz",
        ),
        Component(
            name="kube-scheduler",
            argv=(str(tools.kubernetes / "kube-scheduler"), *_scheduler(directory, flags)),
            env=env,
            after=("kube-apiserver",),
            ready="https://127.0.0.1:10259/readyz",
        ),
    )


def _list_node(
    directory: Path, tools: Tools, flags: Flags, archives: list[Path], env: Mapping[str, str]
) -> tuple[Component, ...]:
    socket = f"{directory}/containerd.sock"
    imports = tuple(
        Component(
            name=f"image-{archive.stem}",
            argv=(
                str(tools.containerd / "ctr"),
                *("-a", socket, "-n", "k8s.io", "images", "import", str(archive)),
            ),
            env=env,
            after=("containerd",),
            ready="exited",
        )
        for archive in archives
    )
    return (
        Component(
            name="containerd",
            argv=(str(tools.containerd / "containerd"), "-c", f"{directory}/containerd.toml"),
            env=env,
            ready=f"unix:{socket}",
        ),
        *imports,
        Component(
            name="kubelet",
            argv=(str(tools.kubernetes / "kubelet"), *_kubelet_flags(directory, flags)),
            env=env,
            after=("kube-apiserver", "containerd"),
            ready="http://127.0.0.1:10248/healthz",
        ),
    )


def base_environment(tools: Tools) -> dict[str, str]:
    """Return the environment for a process of the user's: this one's, with the tools on PATH."""
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{tools.search_path}:{SYSTEM_PATH}"}


def _gates(flags: Flags) -> tuple[str, ...]:
    settings = ",".join(f"{k}={str(v).lower()}" for k, v in sorted(flags.feature_gates.items()))
    return (f"--feature-gates={settings}",) if settings else ()


def _etcd(directory: Path) -> tuple[str, ...]:
    return (
        f"--data-dir={directory}/etcd",
        "--unsafe-no-fsync",  # nothing here has to survive a power cut
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    )


def _apiserver(directory: Path, flags: Flags) -> tuple[str, ...]:
    certs = directory / "certs"
    return (
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        f"--advertise-address={NODE_ADDRESS}",
        "--secure-port=6443",
        f"--cert-dir={directory}/apiserver",
        f"--tls-cert-file={certs}/apiserver.crt",
        f"--tls-private-key-file={certs}/apiserver.key",
        f"--client-ca-file={certs}/ca.crt",
        f"--token-auth-file={certs}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-account-issuer={SERVER}",
        f"--service-account-key-file={certs}/sa.pub",
        f"--service-account-signing-key-file={certs}/sa.key",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--endpoint-reconciler-type=none",
        f"--kubelet-client-certificate={certs}/apiserver-kubelet.crt",
        f"--kubelet-client-key={certs}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={certs}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        # Nobody would take the taint from a new node again.
        *(() if flags.node else ("--disable-admission-plugins=TaintNodesByCondition",)),
        *_gates(flags),
        *flags.apiserver,
    )


def _client(directory: Path, name: str) -> tuple[str, ...]:
    return (
        f"--kubeconfig={directory}/certs/{name}.kubeconfig",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--tls-cert-file={directory}/certs/apiserver.crt",
        f"--tls-private-key-file={directory}/certs/apiserver.key",
        "--kube-api-qps=500",  # the defaults (20 and 50) make tests wait, not work
        "--kube-api-burst=1000",
    )


def _manager(directory: Path, flags: Flags) -> tuple[str, ...]:
    return (
        *_client(directory, "kube-controller-manager"),
        f"--service-account-private-key-file={directory}/certs/sa.key",
        f"--root-ca-file={directory}/certs/ca.crt",
        "--use-service-account-credentials=true",
        f"--flex-volume-plugin-dir={directory}/volume-plugins",
        # It would declare nodes lost that no kubelet keeps alive.
        *(() if flags.node else ("--controllers=*,-node-lifecycle-controller",)),
        *_gates(flags),
        *flags.controller_manager,
    )


def _scheduler(directory: Path, flags: Flags) -> tuple[str, ...]:
    return (*_client(directory, "kube-scheduler"), *_gates(flags), *flags.scheduler)


def _kubelet_flags(directory: Path, flags: Flags) -> tuple[str, ...]:
    return (
        f"--config={directory}/kubelet.json",
        f"--kubeconfig={directory}/certs/kubelet.kubeconfig",
        f"--root-dir={directory}/kubelet",
        f"--cert-dir={directory}/kubelet/pki",
        f"--hostname-override={flags.node_name}",
        f"--node-ip={NODE_ADDRESS}",
        *flags.kubelet,
    )


def _kubelet(directory: Path, flags: Flags) -> dict[str, Any]:
    certs = directory / "certs"
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",  # noqa: S104 - in a network namespace of its own
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{certs}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{certs}/kubelet-serving.crt",
        "tlsPrivateKeyFile": f"{certs}/kubelet-serving.key",
        "containerRuntimeEndpoint": f"unix://{directory}/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{directory.name}",
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%"},
        "makeIPTablesUtilChains": False,
        "podLogsDir": f"{directory}/pod-logs",
        "resolvConf": f"{directory}/resolv.conf",
        "volumePluginDir": f"{directory}/volume-plugins",
        "shutdownGracePeriod": "0s",
        "featureGates": dict(flags.feature_gates),
    }
    return {**config, **flags.kubelet_config}


def _containerd(directory: Path, tools: Tools) -> str:
    return f"""\
version = 3
root = "{directory}/containerd/root"
state = "{directory}/containerd/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = "{directory}/containerd.sock"

[ttrpc]
address = "{directory}/containerd.sock.ttrpc"

[debug]
level = "info"

[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/containerd/opt"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
cdi_spec_dirs = ["{directory}/cdi"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{tools.runc}/runc"
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{tools.cni}"]
conf_dir = "{directory}/cni"
"""


def _network(directory: Path) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": True,
        "ipMasq": False,  # no packet leaves the namespace
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": POD_SUBNET}]],
            "dataDir": f"{directory}/cni-addresses",
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
