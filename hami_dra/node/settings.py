"""What an operator can set for the node process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hami_dra.contract import names
from hami_dra.contract.errors import FatalError
from hami_dra.kubeletplugin.places import PluginSockets, name_sockets

_INJECT_PARTS: Final = 3


@dataclass(frozen=True, slots=True)
class InjectPath:
    """A path of the host that every container with a card gets.

    A character device, such as ``/dev/gdrdrv``, is given as a device, everything else mounted.
    """

    host: Path
    container: str
    read_only: bool = True


def parse_inject_path(text: str) -> InjectPath:
    """Read ``HOST[:CONTAINER][:rw]``.

    Raises:
        FatalError: Not of that form, or not absolute.
    """
    parts = text.split(":")
    read_only = True
    if parts[-1] in {"ro", "rw"} and len(parts) > 1:
        read_only = parts.pop() == "ro"
    host, container = parts[0], parts[-1]
    if len(parts) >= _INJECT_PARTS or not host.startswith("/") or not container.startswith("/"):
        raise FatalError(f"--inject-path {text!r} is not HOST[:CONTAINER][:rw] with absolute paths")
    return InjectPath(Path(host), container, read_only=read_only)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSettings:
    """Settings of one node process.

    Attributes:
        pod_uid: Of this process's pod, if another may run beside it (a DaemonSet with
            ``maxSurge``); "": it has to be the only one.
        node_name: Name of the Node object; also the pool's name. No default: guessing it from
            the host name is wrong on many clouds.
        kubeconfig: File for a process outside the cluster; ``None``: the pod's ServiceAccount.
        kubelet_dir: The kubelet's ``--root-dir``; its default.
        cdi_dir: Where our CDI files go; the one of the two standard directories that is meant for
            files that do not outlive a reboot.
        cdi_search_dirs: Where others' CDI files are looked up, lowest priority first; the
            runtimes' default, without `cdi_dir`, which is always searched last.
        state_dir: Ledger, grants, regions and libraries; must survive a reboot.
        driver_root: Where the NVIDIA driver is, as this process sees it.
        host_driver_root: The same as the container runtime sees it; ``None``: the same path.
        sysfs: Where the kernel shows the PCI bus: NUMA node and root complex of each card. The
            kernel's own place; elsewhere only for simulated cards.
        procfs: Where the kernel shows the rights to MIG instances. The kernel's own place;
            elsewhere only for simulated cards.
        cgroups: Where control groups of version 2 are mounted: the host's own, by the path that
            the driver knows, since limits of its own are set by path. Elsewhere only for simulated
            cards.
        mig_dynamic: Cards that this program divides into MIG instances as claims need them: UUIDs,
            indices or "all"; none.
        libvgpu: The library that containers get; copied to `state_dir`, because containers of
            earlier versions keep using theirs.
        config: The configuration file (`contract.nodeconfig`), followed while the process runs;
            ``None``: its defaults.
        split_count: Shares that may exist on one card at a time, where `config` does not say it;
            HAMi's default.
        inject_paths: More of the host for every container with a card; none.
        health_host: Address of /healthz, /readyz and /metrics; all, because kubelet's probes come
            to the pod's address.
        health_port: 0: any free port.
        prepare_budget_seconds: How long Prepare goes on trying before it answers with an error.
            The kubelet waits 45 s for an answer, and 60-90 s before it asks again.
        drain_seconds: How long running calls may take at the end.
        rediscover_seconds: How often the cards are looked at again.
        repair_seconds: How often CDI files are compared with the ledger: a wiped directory is
            whole again before the next container starts in most cases.
        claim_poll_seconds: How often each prepared claim is read again: for a wish for other
            limits, for the pods that use it, and to restore its status.
        audit_seconds: Between two looks at what processes use of the cards; a pod is reported
            after the second one that finds too much. 0: no audit.
        audit_context_mib: What each process may have beside its grant: contexts and modules,
            which the driver takes and libvgpu does not count. Above what the largest cards need.
        audit_evict: Ask pods that use more than they were granted to end. Needs the rights of
            ``deploy/manifests/audit-eviction.yaml``.
    """

    node_name: str
    pod_uid: str = ""
    kubeconfig: Path | None = None
    kubelet_dir: Path = Path("/var/lib/kubelet")
    cdi_dir: Path = Path("/var/run/cdi")
    cdi_search_dirs: tuple[Path, ...] = (Path("/etc/cdi"),)
    state_dir: Path = Path("/var/lib/hami-dra")
    driver_root: Path = Path("/")
    host_driver_root: Path | None = None
    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    mig_dynamic: tuple[str, ...] = ()
    libvgpu: Path = Path(names.CONTAINER_LIBVGPU)
    config: Path | None = None
    split_count: int = 10
    inject_paths: tuple[InjectPath, ...] = field(default=())
    health_host: str = "0.0.0.0"  # noqa: S104 - see the attribute
    health_port: int = 8080
    prepare_budget_seconds: float = 30.0
    drain_seconds: float = 10.0
    rediscover_seconds: float = 60.0
    repair_seconds: float = 10.0
    claim_poll_seconds: float = 15.0
    audit_seconds: float = 10.0
    audit_context_mib: int = 640
    audit_evict: bool = False

    @property
    def sockets(self) -> PluginSockets:
        """Where the kubelet finds us.

        Raises:
            FatalError: No name is short enough.
        """
        return name_sockets(self.kubelet_dir, names.DRIVER_NAME, pod_uid=self.pod_uid)

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            FatalError: A setting is impossible, with its option.
        """
        if not self.node_name:
            raise FatalError("no node name; set --node-name or $NODE_NAME (spec.nodeName)")
        if self.split_count < 1:
            raise FatalError(f"--split-count must be at least 1, got {self.split_count}")
        _ = self.sockets
        for option, path in (
            ("--kubelet-dir", self.kubelet_dir),
            ("--cdi-dir", self.cdi_dir),
            ("--state-dir", self.state_dir),
            ("--driver-root", self.driver_root),
        ):
            if not path.is_absolute():
                raise FatalError(f"{option} must be an absolute path, got {path}")
        if not self.libvgpu.is_file():
            raise FatalError(f"no library at {self.libvgpu}; set --libvgpu to libvgpu.so")
