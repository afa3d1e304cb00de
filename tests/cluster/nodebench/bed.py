"""A node process alone with an API server: no kubelet, no containers, simulated cards."""

from __future__ import annotations

import compileall
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hami_dra.contract.names import DEVICE_CLASS, DRIVER_NAME
from hami_dra.policy.devices import name_device
from hami_dra.testing.simgpu import A100, DriverRoot, SimCard, create_driver_root
from tests.cluster.calls import Call, require_done, send_all
from tests.cluster.config import BUILD, ROOT
from tests.cluster.installation import NAMESPACE, Installation
from tests.cluster.simnodes import SimNode, create_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.cluster.cluster import Cluster

NODE = "bench-node"
CARDS = 16
SPLIT_COUNT = 100
HEALTH = "http://127.0.0.1:8080"
_CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# structlog imports a package for pretty terminals where it finds it; a container has none.
_PROGRAM = "import sys; sys.modules['rich'] = None; from hami_dra.cli import main; main()"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bed:
    """Where the node process runs.

    Attributes:
        installation: hami-dra's rights; nothing of it runs.
        driver: The simulated cards.
    """

    installation: Installation
    driver: DriverRoot

    @classmethod
    def make(cls, cluster: Cluster) -> Bed:
        """Install what a node process needs, and a container's credentials for it."""
        # As in an image, also where Python is told not to write what it compiles.
        compileall.compile_dir(ROOT / "hami_dra", quiet=1)
        driver = create_driver_root(cluster.directory / "driver", list_cards(CARDS), BUILD)
        installation = Installation(cluster)
        installation.apply_manifests()
        create_nodes(cluster.api, [SimNode(name=NODE)])
        installation.kubeconfig("hami-dra-node", NODE)  # asks for the token
        certs = cluster.directory / "certs"
        token = certs / f"sa.{NAMESPACE}.hami-dra-node.{NODE}.token"
        # In a container /var/run is the host's, which is memory; here /run is private and is too.
        script = (
            f"mkdir -p {_ACCOUNT} && cp {token} {_ACCOUNT}/token && cp {certs}/ca.crt {_ACCOUNT}/"
        )
        cluster.run(["sh", "-c", script])
        return cls(installation, driver)

    @property
    def cluster(self) -> Cluster:
        """The cluster."""
        return self.installation.cluster

    @property
    def cdi_directory(self) -> str:
        """In memory, as /var/run/cdi is on a host; the state is on the disk, as /var/lib is."""
        return "/run/hami-dra-bench-cdi"

    @property
    def environment(self) -> dict[str, str]:
        """What a pod's process has in its environment."""
        return {
            **self.driver.environment(),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": "6443",
        }

    def start_node(self, *, ready: bool = True) -> None:
        """Start the node process.

        Args:
            ready: Wait until /readyz answers 200; it does once a kubelet has registered it.
        """
        cluster = self.cluster
        cluster.start_process(
            "node",
            [
                sys.executable, "-c", _PROGRAM, "node",
                "--node-name", NODE,
                "--kubelet-dir", str(cluster.kubelet_directory),
                "--cdi-dir", self.cdi_directory,
                "--state-dir", str(self.installation.state),
                "--driver-root", str(self.driver.root),
                "--sysfs", str(self.driver.sysfs_dir),
                "--libvgpu", str(BUILD / "src" / "libvgpu.so"),
                "--split-count", str(SPLIT_COUNT),
                "--pod-uid", "0f2c1d34-5a6b-4c7d-8e9f-012345678900",
                "--health-listen", HEALTH.removeprefix("http://"),
            ],
            self.environment,
            ready=f"{HEALTH}/readyz" if ready else "started",
        )  # fmt: skip

    def stop_node(self) -> None:
        """Stop it as kubelet would."""
        self.cluster.stop_process("node")

    def create_claims(self, count: int) -> list[Object]:
        """Create claims that the scheduler has given shares of the cards in turn.

        Returns:
            Of each the ``namespace``, ``name`` and ``uid``.
        """
        api = self.cluster.api
        bodies = [_describe_claim(number) for number in range(count)]
        made = [Call("POST", _CLAIMS, body) for body in bodies]
        answers = send_all(api, made)
        require_done(made, answers)
        allocated = [
            Call(
                "PUT",
                f"{_CLAIMS}/{answer.body['metadata']['name']}/status",
                _allocate(answer.body, n),
            )
            for n, answer in enumerate(answers)
        ]
        require_done(allocated, send_all(api, allocated))
        return [
            {key: str(answer.body["metadata"][key]) for key in ("namespace", "name", "uid")}
            for answer in answers
        ]


def list_cards(count: int, **changes: Any) -> list[SimCard]:
    """Return so many cards of one kind."""
    return [
        replace(
            A100,
            uuid=f"GPU-{number:08x}-5157-4a2b-9c3d-0123456789ab",
            pci_bus_id=f"0000:{number + 1:02x}:00.0",
            minor=number,
            **changes,
        )
        for number in range(count)
    ]


def _describe_claim(number: int) -> Object:
    ask = {
        "deviceClassName": DEVICE_CLASS,
        "capacity": {"requests": {"memory": "400Mi", "cores": "1", "slots": "1"}},
    }
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": f"bench-{number}", "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "main", "exactly": ask}]}},
    }


def _allocate(claim: Mapping[str, Any], number: int) -> Object:
    uuid = f"GPU-{number % CARDS:08x}-5157-4a2b-9c3d-0123456789ab"
    result = {
        "request": "main",
        "driver": DRIVER_NAME,
        "pool": NODE,
        "device": name_device(uuid),
        "shareID": f"{number:08x}-0000-4000-8000-000000000000",
        "consumedCapacity": {"memory": "400Mi", "cores": "1", "slots": "1"},
    }
    pod = {"resource": "pods", "name": f"pod-{number}", "uid": f"pod-{number}"}
    # By this the API server knows that the node may write the claim's status.
    field = {"key": "metadata.name", "operator": "In", "values": [NODE]}
    selector = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    allocation = {"devices": {"results": [result]}, "nodeSelector": selector}
    status = {"allocation": allocation, "reservedFor": [pod]}
    return {**claim, "status": status}
