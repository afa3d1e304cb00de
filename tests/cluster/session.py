"""What one can do with a running cluster: commands, processes, waiting, pods, identities."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster import commands, control, identities, plan, states
from tests.cluster.api import Api, Object
from tests.cluster.errors import ClusterError, WaitError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence

    from tests.cluster.toolchain import Tools

COMMAND_SECONDS = 60.0
POD_SECONDS = 60.0


class Session:
    """A running cluster, whoever started it. Every method has a limit of time."""

    def __init__(self, directory: Path, tools: Tools) -> None:
        self.directory = directory
        self.tools = tools
        self.api = Api(directory)
        self._pid = control.supervisor_pid(directory)

    # --- commands

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as subprocess.run calls it
        check: bool = True,
        timeout_seconds: float = COMMAND_SECONDS,
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

    def kubectl_said(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as above
        """Run kubectl and return all that a person would read, warnings included."""
        done = self._kubectl(arguments, input, COMMAND_SECONDS)
        if done.returncode != 0:
            raise commands.failed(("kubectl", *arguments), done)
        return done.stderr + done.stdout

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

    def wait_process_ended(self, name: str, timeout_seconds: float = 30.0) -> dict[str, Any]:
        """Return a process's status once it has ended by itself.

        Raises:
            ClusterError: it has not in time.
        """
        answer: dict[str, Any] = control.request(
            self.directory, "wait", timeout_seconds, name=name, timeout=timeout_seconds
        )
        return answer

    def restart(self, name: str, sig: int = signal.SIGTERM, *, wait: bool = True) -> dict[str, Any]:
        """Stop a process, start it again as it was, and wait until it is ready.

        Works for the cluster's own programs too; restarting the kubelet leaves pods running.
        Without ``wait`` it only has to have started.
        """
        answer: dict[str, Any] = control.request(
            self.directory, "restart", 90.0, name=name, signal=sig, timeout=20.0, wait=wait
        )
        return answer

    def start_again(self, name: str, *, wait: bool = True) -> dict[str, Any]:
        """Start a process that has ended as it was, and wait until it is ready."""
        answer: dict[str, Any] = control.request(
            self.directory, "again", 90.0, name=name, wait=wait
        )
        return answer

    def signal_process(self, name: str, sig: int) -> None:
        """Send a signal to a process (not to its children) and go on, such as SIGSTOP."""
        pid = self.process_status(name)["pid"]
        done = self.run(["kill", f"-{int(sig)}", str(pid)])
        if done.returncode != 0:
            raise ClusterError(f"signal {sig} for {name!r} (pid {pid}): {done.stderr}")

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

    def wait_pod_started(
        self, name: str, namespace: str = "default", timeout_seconds: float = POD_SECONDS
    ) -> Object:
        """Return a pod once all its containers run or have already ended."""
        return self._wait_pod(name, namespace, states.has_started, timeout_seconds)

    # --- pods

    def pod_logs(self, name: str, namespace: str = "default", container: str | None = None) -> str:
        """Return what a container has written so far."""
        query = f"?container={container}" if container else ""
        path = self.api.resource("pods").path(namespace, name)
        return self.api.request("GET", f"{path}/log{query}").decode(errors="replace")

    def wait_pod_log(
        self,
        name: str,
        line: str,
        namespace: str = "default",
        container: str | None = None,
        timeout_seconds: float = POD_SECONDS,
    ) -> None:
        """Return once a started container has written a line that contains ``line``.

        Raises:
            WaitError: it has not in time, or has ended without; with what it wrote.
        """
        heard = []
        for text in self.api.follow_log(namespace, name, container, timeout_seconds):
            heard.append(text)
            if line in text:
                return
        written = "".join(heard)
        raise WaitError(f"pod {namespace}/{name} has not written {line!r}, but:\n{written}")

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

    def service_account_kubeconfig(self, namespace: str, name: str, node: str = "") -> Path:
        """Return a kubeconfig for a ServiceAccount's own, least-privileged identity.

        The token, valid for two hours, is in a file beside it, as it is in a pod. It names the
        node, if one is given, as the token of a pod there does. Both have to exist.
        """
        return identities.service_account_kubeconfig(
            self.api, self.directory, namespace, name, node
        )

    # --- places

    @property
    def kubelet_directory(self) -> Path:
        """The kubelet's root; plugins register in ``plugins_registry`` below it."""
        return self.directory / "kubelet"

    @property
    def cdi_directory(self) -> Path:
        """Where containerd looks for CDI specs."""
        return self.directory / "cdi"

    def inside(self, path: Path) -> Path:
        """Return where this process finds what the cluster's processes have at a path.

        It differs below a file system that only they have mounted.
        """
        return Path(f"/proc/{self._pid}/root") / path.relative_to("/")

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
        """Return the command line that runs ``argv`` in the cluster's namespaces.

        It keeps the working directory, so that relative paths mean what they say.
        """
        more = ["--pid"] if pid else []
        places = [f"--target={self._pid}", f"--wd={Path.cwd()}", "--mount", "--net"]
        return ["nsenter", *places, *more, "--", *argv]

    def _kubectl(
        self, arguments: Sequence[str], text: str | None, timeout_seconds: float
    ) -> subprocess.CompletedProcess[str]:
        return commands.run(
            self.kubectl_command(arguments), text, self.environment(), timeout_seconds
        )
