"""Instances of the node plugin beside each other, started and ended in a DaemonSet's order."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from hami_dra.testing.nextversion import ATTRIBUTE
from tests.cluster.test_recovery import ours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.stack import Stack

OLD: Final = ("hami_dra", "node")
NEXT: Final = ("hami_dra.testing.nextversion", "--")
BROKEN: Final = ("hami_dra.testing.nextversion", "--broken", "--")


class Instances:
    """Instances of the node plugin by name, each as a pod would have it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.names: list[str] = []

    def start(self, name: str, program: tuple[str, ...], *, ready: bool = True) -> None:
        """Start one; with ``ready`` returns once kubelet has registered it and it is of use."""
        number = len(self.names) + 1
        self.names.append(name)
        self._stack.start_instance(
            name,
            program,
            pod_uid=f"{number:08x}-0000-4000-8000-000000000000",
            health_port=18080 + number,
            ready=ready,
        )

    def stop(self, name: str, sig: int = signal.SIGTERM) -> None:
        """End one."""
        self._stack.cluster.stop_process(name, sig)

    @property
    def running(self) -> list[str]:
        """Those that run."""
        status = self._stack.cluster.process_status
        return [name for name in self.names if status(name)["state"] == "running"]

    def wait_published(self, *, by_next: bool) -> None:
        """Return once the slices are those of the next version, or of the old one."""
        self._stack.cluster.wait_for_all(
            "resourceslices",
            lambda items: any(
                (ATTRIBUTE in item["spec"]["devices"][0]["attributes"]) == by_next
                for item in ours(items)
                if item["spec"].get("devices")
            ),
        )


@contextmanager
def instances_in_turn(stack: Stack) -> Iterator[Instances]:
    """Let instances take the place of the only node plugin, for the length of the block."""
    stack.stop_node()
    started = Instances(stack)
    yield started
    cluster = stack.cluster
    try:
        if started.running:
            cluster.kubectl("delete", "pods", "--all", "--grace-period=1")
            cluster.wait_for_all("resourceclaims", lambda items: not items)
    finally:
        for name in started.running:
            started.stop(name)
        stack.start_node()


def prepare_failures(stack: Stack) -> list[str]:
    """Return what kubelet has said of failed Prepares since the cluster began."""
    items = stack.cluster.kubectl_json("get", "events", "-A")["items"]
    return [item["message"] for item in items if item["reason"].startswith("FailedPrepare")]
