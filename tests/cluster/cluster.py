"""A real Kubernetes cluster for a test: start it, talk to it, and leave nothing behind.

    with Cluster.start(Config()) as cluster:
        cluster.apply(manifest)
        cluster.wait_pod_running("demo")

Every method is synchronous and has a limit of time.
"""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.cluster import (
    cleanup,
    commands,
    control,
    identities,
    images,
    launch,
    plan,
    preflight,
    states,
    toolchain,
)
from tests.cluster.api import Api, Object
from tests.cluster.config import Config
from tests.cluster.errors import ClusterError, WaitError
from tests.cluster.toolchain import Tools

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


__all__ = ["Cluster", "Config"]

POD_SECONDS = 60.0


class Cluster:
    """A running cluster. Made by ``start`` or ``attach``, ended by ``stop`` or ``with``."""

    def __init__(self, directory: Path, tools: Tools, running: launch.Running | None) -> None:
        self.directory = directory
        self.tools = tools
        self._running = running
        self.launched_at = running.started_at if running is not None else 0.0
        self._pid = control.supervisor_pid(directory)
        self.api = Api(directory)

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
        chosen = wanted.images
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
            cluster._become_usable(wanted.flags.node_name)
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
        else:
            launch.end_detached(self.directory)

    # --- commands

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        check: bool = True,
        timeout_seconds: float = 60.0,
    ) -> str:
        """Run kubectl as the cluster's admin and return what it prints.

        Raises:
            CommandError: it failed (unless ``check`` is false), or took too long.
        """
        done = self._kubectl(arguments, input, timeout_seconds)
        if check and done.returncode != 0:
            raise commands.failed(("kubectl", *arguments), done)
        return done.stdout

    def kubectl_json(self, *arguments: str) -> Any:
        """Run kubectl with JSON output and return it decoded."""
        return json.loads(self.kubectl(*arguments, "-o", "json"))

    def apply(self, yaml_text: str) -> str:
        """Apply manifests and return what kubectl prints."""
        return self.kubectl("apply", "-f", "-", input=yaml_text)

    def run(
        self,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's mount, network and PID namespaces, whatever it returns.

        Args:
            argv: the command.
            env: more environment variables than this process has.
            timeout_seconds: when it is killed.
        """
        command = self.enter_command(argv, pid=True)
        return commands.run(command, None, {**self.environment(), **(env or {})}, timeout_seconds)

    # --- processes

    def start_process(
        self,
        name: str,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        *,
        cwd: str | None = None,
        ready: str = "started",
        timeout_seconds: float = 30.0,
    ) -> dict[str, Any]:
        """Start a long-running process in the cluster and return its status.

        Args:
            name: by which it is stopped, and the name of its log.
            argv: the command.
            env: more environment variables than this process has.
            cwd: where it runs; the cluster's directory by default.
            ready: ``started``, ``exited``, ``unix:PATH`` or a URL that has to answer 200.
            timeout_seconds: how long it may take to become ready.
        """
        component = {
            "name": name,
            "argv": argv,
            "env": {**self.environment(), **(env or {})},
            "cwd": cwd,
            "ready": ready,
            "timeout_seconds": timeout_seconds,
        }
        answer: dict[str, Any] = control.request(
            self.directory, "start", timeout_seconds, component=component
        )
        return answer

    def stop_process(
        self, name: str, sig: int = signal.SIGTERM, *, timeout_seconds: float = 10.0
    ) -> dict[str, Any]:
        """Send a signal to a process and wait for its end; ``killed`` says that it had to be."""
        answer: dict[str, Any] = control.request(
            self.directory, "stop", timeout_seconds, name=name, signal=sig, timeout=timeout_seconds
        )
        return answer

    def restart(self, name: str, sig: int = signal.SIGTERM) -> dict[str, Any]:
        """Stop a process, start it again as it was, and wait until it is ready.

        Works for the cluster's own programs too; restarting the kubelet leaves pods running.
        """
        answer: dict[str, Any] = control.request(
            self.directory, "restart", 90.0, name=name, signal=sig, timeout=10.0
        )
        return answer

    def process_status(self, name: str) -> dict[str, Any]:
        """Return state, pid (inside), exit status and milestones (seconds since the start)."""
        for status in self.status():
            if status["name"] == name:
                return status
        raise ClusterError(f"no process is called {name!r}")

    def status(self) -> list[dict[str, Any]]:
        """Return the status of every process."""
        answer: list[dict[str, Any]] = control.request(self.directory, "status")
        return answer

    def logs(self, name: str) -> str:
        """Return what a process has written so far."""
        path = self.directory / "logs" / f"{name}.log"
        if not path.exists():
            raise ClusterError(f"no process called {name!r} has a log in {path.parent}")
        return path.read_text(errors="replace")

    # --- waiting

    def wait_for(
        self,
        kind: str,
        name: str,
        predicate: Callable[[Object | None], bool],
        namespace: str | None = "default",
        timeout_seconds: float = 30.0,
    ) -> Object | None:
        """Return an object as soon as ``predicate`` holds for it; None stands for no object.

        Raises:
            WaitError: it did not in time; the message has the object as last seen.
        """
        found = self.api.wait(
            kind,
            lambda items: predicate(items[0] if items else None),
            namespace=namespace,
            name=name,
            timeout_seconds=timeout_seconds,
        )
        return found[0] if found else None

    def wait_for_all(
        self,
        kind: str,
        predicate: Callable[[list[Object]], bool],
        namespace: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> list[Object]:
        """Return all objects of a kind as soon as ``predicate`` holds for the list of them."""
        return self.api.wait(kind, predicate, namespace=namespace, timeout_seconds=timeout_seconds)

    def wait_gone(
        self, kind: str, name: str, namespace: str | None = "default", timeout_seconds: float = 60.0
    ) -> None:
        """Return once an object does not exist."""
        self.wait_for(kind, name, lambda item: item is None, namespace, timeout_seconds)

    def wait_pod_running(
        self, name: str, namespace: str = "default", timeout_seconds: float = POD_SECONDS
    ) -> Object:
        """Return a pod once all its containers run; fail at once when it cannot any more."""

        def settled(pod: Object | None) -> bool:
            return states.is_running(pod) or states.phase(pod) in {"Failed", "Succeeded"}

        pod = self._wait_pod(name, namespace, settled, timeout_seconds)
        if not states.is_running(pod):
            status = json.dumps(pod.get("status", {}), indent=1)
            raise WaitError(f"pod {namespace}/{name} has ended instead of running: {status}")
        return pod

    def wait_pod_phase(
        self,
        name: str,
        phase: str,
        namespace: str = "default",
        timeout_seconds: float = POD_SECONDS,
    ) -> Object:
        """Return a pod once it is in a phase."""
        return self._wait_pod(
            name, namespace, lambda pod: states.phase(pod) == phase, timeout_seconds
        )

    # --- pods

    def pod_logs(self, name: str, namespace: str = "default", container: str | None = None) -> str:
        """Return what a container has written so far."""
        query = f"?container={container}" if container else ""
        path = self.api.resource("pods").path(namespace, name)
        return self.api.request("GET", f"{path}/log{query}").decode(errors="replace")

    def exec(
        self,
        pod: str,
        *argv: str,
        namespace: str = "default",
        container: str | None = None,
        check: bool = True,
        timeout_seconds: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container.

        Raises:
            CommandError: it failed (unless ``check`` is false), or took too long.
        """
        chosen = ("-c", container) if container else ()
        arguments = ("exec", "-n", namespace, pod, *chosen, "--", *argv)
        done = self._kubectl(arguments, None, timeout_seconds)
        if check and done.returncode != 0:
            raise commands.failed(("kubectl", *arguments), done)
        return done

    # --- identities

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig of a member of system:masters; valid inside the network namespace."""
        return self.directory / "certs" / "admin.kubeconfig"

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig for a ServiceAccount's own, least-privileged identity.

        The token, valid for two hours, is in a file beside it, as it is in a pod. The
        ServiceAccount has to exist.
        """
        return identities.service_account_kubeconfig(self.api, self.directory, namespace, name)

    # --- places

    @property
    def kubelet_directory(self) -> Path:
        """The kubelet's root; plugins register in ``plugins_registry`` below it."""
        return self.directory / "kubelet"

    @property
    def cdi_directory(self) -> Path:
        """Where containerd looks for CDI specs."""
        return self.directory / "cdi"

    def _become_usable(self, node: str) -> None:
        self.wait_for("nodes", node, states.is_ready, None, 60.0)
        self.wait_for("serviceaccounts", "default", lambda item: item is not None)

    def _wait_pod(
        self,
        name: str,
        namespace: str,
        predicate: Callable[[Object | None], bool],
        timeout_seconds: float,
    ) -> Object:
        try:
            pod = self.wait_for("pods", name, predicate, namespace, timeout_seconds)
        except WaitError as error:
            events = self.kubectl("get", "events", "-n", namespace, check=False)
            raise WaitError(f"{error}\nevents in {namespace}:\n{events}") from None
        return pod if pod is not None else {}

    def environment(self) -> dict[str, str]:
        """Return this process's environment with the cluster's tools on PATH."""
        return plan.base_environment(self.tools)

    def kubectl_command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command line that runs kubectl as admin in the cluster's namespaces."""
        program = str(self.tools.kubernetes / "kubectl")
        cache = f"--cache-dir={self.directory}/kubectl-cache"
        config = f"--kubeconfig={self.admin_kubeconfig}"
        return self.enter_command([program, config, cache, *arguments])

    def enter_command(self, argv: Sequence[str], *, pid: bool = False) -> list[str]:
        """Return the command line that runs ``argv`` in the cluster's namespaces."""
        more = ["--pid"] if pid else []
        return ["nsenter", f"--target={self._pid}", "--mount", "--net", *more, "--", *argv]

    def _kubectl(
        self, arguments: Sequence[str], text: str | None, timeout_seconds: float
    ) -> subprocess.CompletedProcess[str]:
        return commands.run(
            self.kubectl_command(arguments), text, self.environment(), timeout_seconds
        )
