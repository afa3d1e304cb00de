"""hami-dra with two of each process, any of which may be killed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.cluster.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

_HOST = "127.0.0.1"
_WEBHOOKS = {"webhook-a": (8444, 8091), "webhook-b": (8445, 8092)}
_CONTROLLERS = {"controller-a": 8093, "controller-b": 8094}
WEBHOOKS = tuple(_WEBHOOKS)
CONTROLLERS = tuple(_CONTROLLERS)


class Replicas:
    """Two webhooks behind one address, and two controllers of which one leads."""

    def __init__(self, cluster: Cluster, *, template_age_seconds: float) -> None:
        self._cluster = cluster
        self._installation = Installation(cluster)
        self._installation.apply_manifests()
        self._installation.bootstrap()
        for name, (port, health) in _WEBHOOKS.items():
            self._installation.start_webhook_process(
                name, f"https://{_HOST}:{port}", f"http://{_HOST}:{health}"
            )
        self._installation.start_service(
            {port: f"http://{_HOST}:{health}" for port, health in _WEBHOOKS.values()}
        )
        for name, health in _CONTROLLERS.items():
            self._installation.start_controller(
                name=name,
                health=f"http://{_HOST}:{health}",
                template_age_seconds=template_age_seconds,
            )

    def leader(self) -> str | None:
        """Return the name of the controller that leads, ``None`` while none does."""
        for name, health in _CONTROLLERS.items():
            metrics = self._installation.metrics(f"http://{_HOST}:{health}")
            if "hami_dra_controller_leading 1.0" in metrics:
                return name
        return None

    def kill(self, name: str) -> None:
        """Kill a process and start it again, as kubelet would; return once it is ready.

        Not for the API server: what hinders it then from being ready is the load of all who come
        back to it.
        """
        self._cluster.restart(name, signal.SIGKILL, wait=name in {*WEBHOOKS, *CONTROLLERS})

    def replace(self, name: str) -> None:
        """Stop a process as kubelet does in a rolling restart; return once it is a target again.

        A Deployment looks at the next pod only when the API server knows that this one is ready,
        which is when the Service knows it too.
        """
        port, _ = _WEBHOOKS[name]
        before = self._installation.count_targeted(port)
        self._cluster.restart(name, signal.SIGTERM)
        self._installation.wait_target(port, before + 1)

    def count_logged(self, event: str) -> int:
        """Return how often the controllers have logged something."""
        logs = (self._cluster.logs(name) for name in CONTROLLERS)
        return sum(log.count(f'"event":"{event}"') for log in logs)
