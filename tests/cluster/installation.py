"""hami-dra's cluster-wide part in a test cluster: the webhook and the controller.

The processes run with ServiceAccounts of their own and no more rights than ``deploy/manifests``
gives, so a missing permission fails here first.
"""

import json
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from hami_dra.contract.names import DRIVER_NAME
from tests.cluster.cluster import Cluster
from tests.cluster.launch import ROOT
from tests.cluster.service import PROBE_SECONDS, READY

NAMESPACE = "hami-dra"
WEBHOOK = "https://127.0.0.1:8443"
WEBHOOK_HEALTH = "http://127.0.0.1:8081"
CONTROLLER_HEALTH = "http://127.0.0.1:8082"
REPLICA_PORT = 8453
TARGET_SECONDS = 20
_COMMAND = (sys.executable, "-m", "hami_dra")


def replica_health(number: int) -> str:
    """Return where one of several webhook processes answers for its health and metrics."""
    return f"http://127.0.0.1:{8091 + number}"


class Installation:
    """hami-dra installed into a cluster, whatever nodes that has."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.state = cluster.directory / "hami-dra"
        self._certificates = str(self.state / "webhook-certs")
        self._config: tuple[str, ...] = ()

    @classmethod
    def install_admission(cls, cluster: Cluster, settings: Mapping[str, Any] | None = None) -> Self:
        """Install the manifests and start the webhook; return once it is ready.

        Args:
            cluster: Where.
            settings: Content of the admission configuration; the defaults without.
        """
        installation = cls(cluster)
        installation.apply_manifests()
        installation.start_webhook(settings)
        return installation

    def apply_manifests(self) -> None:
        """Install what an administrator applies: the namespace and our rights."""
        for name in ("namespace.yaml", "rbac.yaml", "slices-policy.yaml"):
            self.cluster.apply((ROOT / "deploy" / "manifests" / name).read_text())

    def start_webhook(
        self, settings: Mapping[str, Any] | None = None, *, replicas: int = 1
    ) -> None:
        """Make certificates, register the webhooks and serve them.

        Args:
            settings: Content of the admission configuration; the defaults without.
            replicas: Number of processes. One is called ``webhook``; several are called
                ``webhook-0`` and so on, behind a Service.
        """
        self.bootstrap(settings)
        if replicas == 1:
            self.start_webhook_process("webhook", WEBHOOK, WEBHOOK_HEALTH)
            return
        for number in range(replicas):
            target = f"127.0.0.1:{REPLICA_PORT + number}"
            self.start_webhook_process(f"webhook-{number}", target, replica_health(number))
        self.start_service(
            {REPLICA_PORT + number: replica_health(number) for number in range(replicas)}
        )

    def start_service(self, targets: Mapping[int, str]) -> None:
        """Serve `WEBHOOK` by replicas; return once the Service knows that all are ready.

        Args:
            targets: Addresses of health by the ports of reviews.
        """
        pairs = [f"{port}:{health.rpartition(':')[2]}" for port, health in targets.items()]
        self.cluster.start_process(
            "service",
            [sys.executable, "-m", "tests.cluster.service", WEBHOOK.rpartition(":")[2], *pairs],
            {"PYTHONPATH": str(ROOT)},
        )
        for port in targets:
            self.wait_target(port)

    def wait_target(self, port: int, times: int = 1) -> None:
        """Return once the Service has begun so many times to send connections to a port."""
        deadline = time.monotonic() + TARGET_SECONDS
        while self.count_targeted(port) < times:
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {port} is no target after {TARGET_SECONDS} s")
            time.sleep(PROBE_SECONDS)  # another process tells it in its log

    def count_targeted(self, port: int) -> int:
        """Return how many times the Service has begun to send connections to a port."""
        return self.cluster.logs("service").count(READY.format(port))

    def bootstrap(self, settings: Mapping[str, Any] | None = None) -> None:
        """Make certificates and register the webhooks, as served at `WEBHOOK`."""
        self._config = self._write_config(settings)
        self._hami_dra(
            "controller", "bootstrap", "--cert-dir", self._certificates, "--webhook-url", WEBHOOK,
            *self._config,
            account="hami-dra-controller",
        )  # fmt: skip

    def start_webhook_process(self, name: str, reviews: str, health: str) -> None:
        """Start one replica of the webhook; return once it is ready."""
        self.cluster.start_process(
            name,
            [
                *_COMMAND, "webhook", "--cert-dir", self._certificates,
                "--listen", reviews.removeprefix("https://"),
                "--health-listen", health.removeprefix("http://"),
                "--kubeconfig", self.kubeconfig("hami-dra-webhook"),
                *self._config,
            ],
            ready=f"{health}/readyz",
        )  # fmt: skip

    def start_controller(
        self,
        *,
        template_age_seconds: float = 3600.0,
        name: str = "controller",
        health: str = CONTROLLER_HEALTH,
    ) -> None:
        """Start a controller; ready means that it takes part in the election."""
        self.cluster.start_process(
            name,
            [
                *_COMMAND, "controller", "run",
                "--template-age", str(template_age_seconds),
                "--health-listen", health.removeprefix("http://"),
                "--lease-namespace", NAMESPACE,
                "--kubeconfig", self.kubeconfig("hami-dra-controller"),
            ],
            ready=f"{health}/readyz",
        )  # fmt: skip

    def stop_controller(self) -> dict[str, Any]:
        """Stop the controller as kubelet would."""
        return self.cluster.stop_process("controller", signal.SIGTERM)

    def devices(self) -> list[dict[str, Any]]:
        """Return the published devices in the order of the slices."""
        return [device for item in self.slices() for device in item["spec"].get("devices") or []]

    def slices(self) -> list[dict[str, Any]]:
        """Return our ResourceSlices in the order of their names."""
        return sorted(
            (
                item
                for item in self.cluster.api.items("resourceslices")
                if item["spec"]["driver"] == DRIVER_NAME
            ),
            key=lambda item: str(item["metadata"]["name"]),
        )

    def claims(self, namespace: str = "default") -> list[dict[str, Any]]:
        """Return the ResourceClaims of a namespace."""
        return self.cluster.api.items("resourceclaims", namespace)

    def claim_of(self, pod: str, namespace: str = "default") -> dict[str, Any]:
        """Return the claim that was made for a pod."""
        for claim in self.claims(namespace):
            owners = claim["metadata"].get("ownerReferences", [])
            if any(owner["name"] == pod for owner in owners):
                return claim
        raise LookupError(f"no ResourceClaim belongs to pod {namespace}/{pod}")

    def metrics(self, health: str) -> str:
        """Return what /metrics of a process says."""
        return self._read(f"{health}/metrics")

    def readiness(self, health: str) -> str:
        """Return what /readyz says, whatever its status."""
        return self._read(f"{health}/readyz")

    def _read(self, url: str) -> str:
        program = (
            "import sys, urllib.request, urllib.error\n"
            "try: print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())\n"
            "except urllib.error.HTTPError as error: print(error.read().decode())\n"
        )
        return self.cluster.run([sys.executable, "-c", program, url]).stdout

    def apply_and_hear(self, manifests: str) -> str:
        """Apply and return all that kubectl tells the person, warnings included."""
        return self.cluster.kubectl_said("apply", "-f", "-", input=manifests)

    # --- inside

    def _hami_dra(self, *arguments: str, account: str) -> str:
        done = self.cluster.run([*_COMMAND, *arguments, "--kubeconfig", self.kubeconfig(account)])
        if done.returncode != 0:
            raise RuntimeError(f"hami-dra {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _write_config(self, settings: Mapping[str, Any] | None) -> tuple[str, ...]:
        if settings is None:
            return ()
        path = self.state / "admission.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(settings))
        return ("--config", str(path))

    def kubeconfig(self, account: str, node: str = "") -> str:
        """Return a kubeconfig of one of our ServiceAccounts, on a node if one is given."""
        return str(self.cluster.service_account_kubeconfig(NAMESPACE, account, node))
