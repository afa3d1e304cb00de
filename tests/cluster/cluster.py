"""A real Kubernetes cluster for a test: start it, talk to it, and leave nothing behind.

    with Cluster.start(Config()) as cluster:
        cluster.apply(manifest)
        cluster.wait_pod_running("demo")

Every method is synchronous and has a limit of time.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.cluster import cleanup, images, launch, preflight, states, toolchain
from tests.cluster.config import Config
from tests.cluster.errors import ClusterError
from tests.cluster.session import Session
from tests.cluster.toolchain import Tools

if TYPE_CHECKING:
    from types import TracebackType

    from tests.cluster.plan import Flags

__all__ = ["Cluster", "Config"]


class Cluster(Session):
    """A running cluster. Made by ``start`` or ``attach``, ended by ``stop`` or ``with``.

    What one does with it is in ``Session``.
    """

    def __init__(self, directory: Path, tools: Tools, running: launch.Running | None) -> None:
        super().__init__(directory, tools)
        self._running = running
        self.launched_at = running.started_at if running is not None else 0.0

    @classmethod
    def start(cls, config: Config | None = None) -> Cluster:
        """Start a cluster and return once a pod could be created in it.

        Builds missing tools first, which takes minutes the first time on a machine. Whatever goes
        wrong, and on Ctrl-C, everything that was started is ended and removed.

        Raises:
            PreflightError: the machine lacks something.
            ClusterError: a component did not start; the message ends with its log.
        """
        wanted = config if config is not None else Config()
        preflight.require(wanted.base, wanted.kubernetes)
        tools = toolchain.ensure_tools(wanted.kubernetes)
        chosen = wanted.images if wanted.flags.node else ()
        if chosen is None:
            chosen = (images.pause_image(wanted.build), images.cuda_test_image(wanted.build))
        directory, lock = launch.make_directory(wanted.base)
        running: launch.Running | None = None
        try:
            with lock:
                running = launch.start(
                    directory,
                    lock,
                    tools,
                    wanted.flags,
                    chosen,
                    keep=wanted.keep,
                    detached=wanted.detached,
                )
            launch.wait_until_up(running, wanted.start_seconds)
            cluster = cls(directory, tools, running)
            cluster._become_usable(wanted.flags)
        except BaseException:
            with contextlib.suppress(ClusterError):
                if running is not None:
                    launch.end(running)
                else:
                    cleanup.remove_all(directory)
            raise
        return cluster

    @classmethod
    def attach(cls, directory: Path) -> Cluster:
        """Return a cluster that another process started; ``stop`` ends it all the same."""
        state = json.loads((directory / launch.STATE_FILE).read_text())["tools"]
        version = state.pop("kubernetes_version")
        places = {name: Path(path) for name, path in state.items()}
        return cls(directory, Tools(kubernetes_version=version, **places), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process of the cluster and remove all it made. Idempotent."""
        if self._running is not None:
            launch.end(self._running)
        elif self.directory.exists():
            launch.end_detached(self.directory)

    def _become_usable(self, flags: Flags) -> None:
        if flags.node:
            self.wait_for("nodes", flags.node_name, states.is_ready, None, 60.0)
        self.wait_for("serviceaccounts", "default", lambda item: item is not None)
