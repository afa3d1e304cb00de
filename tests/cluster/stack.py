"""hami-dra on a test cluster's node: simulated cards, the node plugin, and what they leave."""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hami_dra.contract.names import CDI_KIND_CLAIM
from hami_dra.testing.simgpu import DriverRoot, SimCard, create_driver_root, write_cards
from tests.cluster.cluster import Cluster
from tests.cluster.config import BUILD
from tests.cluster.installation import Installation

NODE_HEALTH = "http://127.0.0.1:8080"
_NVML_DRIVER_NOT_LOADED = 9  # nvmlReturn_t NVML_ERROR_DRIVER_NOT_LOADED
_COMMAND = (sys.executable, "-m", "hami_dra")


@dataclass(frozen=True)
class Leftovers:
    """What exists of claims on the node and in the API server; all empty when nothing runs."""

    claims: tuple[str, ...]
    cdi_files: tuple[str, ...]
    grants: tuple[str, ...]
    ledger_rows: tuple[str, ...]
    mounts: tuple[str, ...]

    @property
    def none(self) -> bool:
        """Whether nothing is left."""
        return not any((self.claims, self.cdi_files, self.grants, self.ledger_rows, self.mounts))


class Stack(Installation):
    """hami-dra installed into a cluster with a node."""

    def __init__(self, cluster: Cluster, driver: DriverRoot, cards: Sequence[SimCard]) -> None:
        super().__init__(cluster)
        self._cards = tuple(cards)
        self._node_config = cluster.directory / "node-config.json"
        self.driver = driver
        self.node_options: tuple[str, ...] = ()
        self.node_environment: dict[str, str] = {}

    @classmethod
    def install(
        cls,
        cluster: Cluster,
        cards: Sequence[SimCard],
        settings: Mapping[str, Any] | None = None,
        *,
        node_options: tuple[str, ...] = (),
    ) -> Self:
        """Install the manifests and start the processes; return once they are ready.

        Args:
            cluster: Where.
            cards: What its node has.
            settings: Content of the admission configuration; the defaults without.
            node_options: More options for the node plugin.
        """
        driver = create_driver_root(cluster.directory / "driver", cards, BUILD)
        stack = cls(cluster, driver, cards)
        stack.configure_node({})
        stack.node_options = node_options
        stack.apply_manifests()
        stack.start_webhook(settings)
        stack.start_node()
        return stack

    # --- processes

    def node_arguments(self) -> list[str]:
        """Return the node plugin's options for this cluster."""
        cluster = self.cluster
        return [
            "--node-name", self.node_name,
            "--kubeconfig", self.kubeconfig("hami-dra-node", self.node_name),
            "--kubelet-dir", str(cluster.kubelet_directory),
            "--cdi-dir", str(cluster.cdi_directory),
            "--state-dir", str(self.state),
            "--driver-root", str(self.driver.root),
            "--sysfs", str(self.driver.sysfs_dir),
            "--procfs", str(self.driver.procfs_dir),
            "--libvgpu", str(BUILD / "src" / "libvgpu.so"),
            "--inject-path", f"{self.driver.sim_dir}:/run/vgpu-sim:rw",
            # So that a test of cards that change need not wait a minute.
            "--rediscover-seconds", "2",
            "--config", str(self._node_config),
            "--health-listen",
            NODE_HEALTH.removeprefix("http://"),
        ]  # fmt: skip

    def start_node(self, *, crash_at: str | None = None, ready: bool = True) -> None:
        """Start the node plugin.

        Args:
            crash_at: a durable step of Prepare after which the process kills itself.
            ready: wait until /readyz answers 200; else only until the process runs.
        """
        command = [*_COMMAND, "node"]
        if crash_at is not None:
            command = [sys.executable, "-m", "hami_dra.testing.crash", "--at", crash_at, "--"]
        self.cluster.start_process(
            "node",
            [*command, *self.node_arguments(), *self.node_options],
            {**self.driver.environment(), **self.node_environment},
            ready=f"{NODE_HEALTH}/readyz" if ready else "started",
        )

    def start_instance(
        self, name: str, program: Sequence[str], *, pod_uid: str, health_port: int, ready: bool
    ) -> None:
        """Start an instance of the node plugin that expects others beside it.

        Args:
            name: Of the process.
            program: A module, and its first arguments.
            pod_uid: Unlike that of every other instance.
            health_port: The same.
            ready: As for `start_node`.
        """
        health = f"127.0.0.1:{health_port}"
        arguments = [
            *self.node_arguments(),
            *self.node_options,
            *("--pod-uid", pod_uid, "--health-listen", health),
        ]
        self.cluster.start_process(
            name,
            [sys.executable, "-m", *program, *arguments],
            self.driver.environment(),
            ready=f"http://{health}/readyz" if ready else "started",
        )

    def touch_slice(self) -> None:
        """Let everybody who watches the slices see a change that is none."""
        stamp = f"hami-dra-test/touched={time.monotonic_ns()}"
        self.cluster.kubectl("annotate", "resourceslices", "--all", "--overwrite", stamp)

    def stop_node(self, sig: int = signal.SIGTERM) -> dict[str, Any]:
        """Stop the node plugin with a signal."""
        return self.cluster.stop_process("node", sig)

    def ensure_node(self) -> None:
        """Start the node plugin if it does not run: without it no pod with a claim ends."""
        if self.cluster.process_status("node")["state"] not in {"starting", "running"}:
            self.start_node()

    def wait_node_ended(self, timeout_seconds: float = 60.0) -> dict[str, Any]:
        """Return the node plugin's status once it has ended by itself."""
        return self.cluster.wait_process_ended("node", timeout_seconds)

    def configure_node(self, config: Mapping[str, Any]) -> None:
        """Replace the node plugin's configuration file; a running plugin reads it soon."""
        temporary = self._node_config.with_suffix(".new")
        temporary.write_text(json.dumps(config))
        temporary.replace(self._node_config)

    def break_nvml(self) -> None:
        """Let NVML's initialisation fail from now on, as without a loaded kernel module."""
        write_cards(self.driver.sim_dir, self._cards, init_error=_NVML_DRIVER_NOT_LOADED)

    def repair_nvml(self) -> None:
        """Undo `break_nvml`."""
        write_cards(self.driver.sim_dir, self._cards)

    @property
    def node_name(self) -> str:
        """The one node of the cluster."""
        return str(self.cluster.api.items("nodes")[0]["metadata"]["name"])

    # --- what it did

    def cdi_file(self, claim: dict[str, Any]) -> Path:
        """Return the CDI file of a claim."""
        uid = claim["metadata"]["uid"]
        for path in self.cdi_files():
            if uid in path.name:
                return path
        raise LookupError(f"no CDI file of claim {uid} in {self.cluster.cdi_directory}")

    def cdi_files(self) -> list[Path]:
        """Return the CDI files of claims (not the node's file that describes its cards)."""
        return sorted(
            path
            for path in self.cluster.inside(self.cluster.cdi_directory).iterdir()
            if path.suffix == ".json" and json.loads(path.read_text())["kind"] == CDI_KIND_CLAIM
        )

    def ledger_rows(self) -> list[str]:
        """Return the UIDs of the claims in the node's ledger, read as any program would."""
        return [str(uid) for (uid,) in self.read_ledger("SELECT uid FROM claims")]

    def read_ledger(self, query: str) -> list[list[Any]]:
        """Return what the node's ledger says, read as any program on the node would."""
        program = (
            "import json, sqlite3, sys\n"
            "connection = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=True)\n"
            "print(json.dumps(list(connection.execute(sys.argv[2]))))\n"
        )
        path = str(self.state / "ledger.db")
        done = self.cluster.run([sys.executable, "-c", program, path, query])
        if done.returncode != 0:
            raise RuntimeError(f"ledger {path}: {done.stderr}")
        rows: list[list[Any]] = json.loads(done.stdout)
        return rows

    def leftovers(self) -> Leftovers:
        """Return everything of any claim that exists now."""
        grants = self.state / "claims"
        kept = self.cluster.inside(grants)
        # Of every process in the cluster: what a container has mounted only it can see.
        script = "cat /proc/[0-9]*/mountinfo 2>/dev/null | sort -u"
        mounts = self.cluster.run(["sh", "-c", script]).stdout.splitlines()
        return Leftovers(
            claims=tuple(
                f"{item['metadata']['namespace']}/{item['metadata']['name']}"
                for item in self.cluster.api.items("resourceclaims")
            ),
            cdi_files=tuple(path.name for path in self.cdi_files()),
            grants=tuple(path.name for path in kept.iterdir()) if kept.exists() else (),
            ledger_rows=tuple(self.ledger_rows()),
            mounts=tuple(line for line in mounts if str(grants) in line),
        )

    # --- what a container sees

    def all_visible_mib(self, pod: str) -> list[int]:
        """Return the size of each device as a container sees it; CUDA and NVML have to agree."""
        done = self.cluster.exec(pod, "cuprobe", "devices", "--json")
        sizes = [
            (int(item["cuda_total_mib"]), int(item["nvml_total_mib"]))
            for item in json.loads(done.stdout)
        ]
        if any(cuda != nvml for cuda, nvml in sizes):
            raise AssertionError(f"CUDA and NVML disagree in pod {pod}: {sizes}")
        return [cuda for cuda, _ in sizes]

    def wait_exec(self, pod: str, timeout_seconds: float = 30.0) -> None:
        """Return once kubelet lets commands into a pod: after its start it learns of pods anew."""
        deadline = time.monotonic() + timeout_seconds
        while self.cluster.exec(pod, "true", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"kubelet knows no pod {pod} after {timeout_seconds:g} s")

    def visible_mib(self, pod: str) -> int:
        """Return the size of a container's only device."""
        (size,) = self.all_visible_mib(pod)
        return size

    def host_cards(self) -> list[dict[str, Any]]:
        """Return name, total_mib and used_mib of each card, by nvidia-ml-py on the node."""
        program = (
            "import json, pynvml as n\n"
            "n.nvmlInit()\n"
            "cards = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]\n"
            "read = [(n.nvmlDeviceGetName(c), n.nvmlDeviceGetMemoryInfo(c)) for c in cards]\n"
            "print(json.dumps([{'name': a, 'total_mib': m.total >> 20, 'used_mib': m.used >> 20}"
            " for a, m in read]))\n"
        )
        done = self.cluster.run([sys.executable, "-c", program], self.driver.environment())
        cards: list[dict[str, Any]] = json.loads(done.stdout)
        return cards

    def host_used_mib(self) -> int:
        """Return what is used on all cards together, by NVML on the node."""
        return sum(int(card["used_mib"]) for card in self.host_cards())

    def wait_pod_log(self, pod: str, line: str, timeout_seconds: float = 60.0) -> None:
        """Return once a pod has written a line, by following its log."""
        self.cluster.wait_pod_started(pod)
        self.cluster.wait_pod_log(pod, line, timeout_seconds=timeout_seconds)
