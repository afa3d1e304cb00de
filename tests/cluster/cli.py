"""The cluster from the command line: ``python -m tests.cluster up`` and the like."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import bench, cleanup, control, launch, preflight, toolchain
from tests.cluster.cluster import Cluster
from tests.cluster.config import BUILD, Config
from tests.cluster.errors import ClusterError
from tests.cluster.plan import Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Obey one command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def find(given: str | None, base: Path = Path("/tmp")) -> Path:  # noqa: S108 - see Config.base
    """Return the directory of the cluster that is meant: the given one, or else the only one.

    Raises:
        ClusterError: there is none, or more than one.
    """
    if given or (given := os.environ.get("HAMI_DRA_CLUSTER")):
        return Path(given)
    running = [d for d in sorted(base.glob(f"{cleanup.PREFIX}*")) if _answers(d)]
    if not running:
        raise ClusterError("no cluster is running; start one with: up --keep-running")
    if len(running) > 1:
        listed = " ".join(map(str, running))
        raise ClusterError(f"several clusters are running, choose one with --dir: {listed}")
    return running[0]


def _answers(directory: Path) -> bool:
    try:
        control.supervisor_pid(directory)
    except ClusterError:
        return False
    return True


def _config(options: argparse.Namespace) -> Config:
    gates = dict(gate.split("=", 1) for gate in options.feature_gate)
    flags = Flags(
        node_name=options.node_name,
        feature_gates={name: value.lower() == "true" for name, value in gates.items()},
    )
    return Config(
        kubernetes=options.kubernetes,
        flags=flags,
        build=Path(options.build).resolve(),
        keep=options.keep,
        detached=options.keep_running,
    )


def _up(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster.start(_config(options))
    if options.with_hami_dra:
        _install(cluster)
    print(cluster.directory, flush=True)
    if options.keep_running:
        return 0
    with cluster:
        print("running; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("ending", file=sys.stderr)
    return 0


def _install(cluster: Cluster) -> None:
    # Imported here: everything else of this command works without the product's dependencies.
    from hami_dra.testing.simgpu import A100, T4  # noqa: PLC0415
    from tests.cluster.stack import Stack  # noqa: PLC0415

    try:
        Stack.install(cluster, (A100, T4))
    except BaseException:
        cluster.stop()
        raise


def _down(options: argparse.Namespace) -> int:
    directory = find(options.dir)
    launch.end_detached(directory)
    print(f"{directory} is gone" if not directory.exists() else f"{directory} was kept")
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(find(options.dir))
    print(cluster.directory)
    for entry in cluster.status():
        times = ", ".join(f"{what} {when:.1f} s" for what, when in entry["milestones"].items())
        print(f"{entry['name']:26} {entry['state']:8} {times}")
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(find(options.dir))
    return subprocess.run(cluster.kubectl_command(options.rest), check=False).returncode


def _shell(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(find(options.dir))
    env = {**cluster.environment(), "KUBECONFIG": str(cluster.admin_kubeconfig), "PS1": "cluster# "}
    command = cluster.enter_command([os.environ.get("SHELL", "/bin/sh")], pid=True)
    return subprocess.run(command, env=env, check=False).returncode


def _logs(options: argparse.Namespace) -> int:
    folder = find(options.dir) / "logs"
    path = folder / f"{options.name}.log"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.log")))
        raise ClusterError(f"no log of {options.name!r}; there are: {names}")
    print(path.read_text(errors="replace"), end="")
    return 0


def _build_tools(options: argparse.Namespace) -> int:
    tools = toolchain.ensure_tools(options.kubernetes)
    for name in ("kubernetes", "etcd", "containerd", "runc", "cni"):
        print(f"{name:12} {getattr(tools, name)}")
    return 0


def _preflight(options: argparse.Namespace) -> int:
    preflight.require(Config().base, options.kubernetes)
    missing = toolchain.missing(options.kubernetes)
    built = f"to be built first: {', '.join(missing)}" if missing else "all tools are built"
    print(f"this machine can run the test cluster; {built}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    return bench.run(_config(options), options.runs)


def _check_kill(options: argparse.Namespace) -> int:
    return bench.check_kill(_config(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hami-dra-cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, action: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=action)
        return command

    for name, action, text in (
        ("up", _up, "start a cluster"),
        ("bench", _bench, "measure the time to each milestone"),
        ("check-kill", _check_kill, "kill the client of a cluster and verify that nothing is left"),
    ):
        command = add(name, action, text)
        command.add_argument("--node-name", default="node-1")
        command.add_argument("--feature-gate", action="append", default=[], metavar="NAME=BOOL")
        command.add_argument("--build", default=str(BUILD), help="folder of the C build")
        command.add_argument("--keep", action="store_true", help="keep the directory afterwards")
        command.add_argument("--kubernetes", default="kubernetes", help="folder below tools/")
        command.set_defaults(keep_running=False, runs=1)
        if name == "up":
            command.add_argument(
                "--keep-running", action="store_true", help="return; end it with: down"
            )
            command.add_argument(
                "--with-hami-dra", action="store_true", help="install hami-dra and two cards"
            )
        if name == "bench":
            command.add_argument("runs", type=int, nargs="?", default=3)
    for name, action, text in (
        ("down", _down, "end a cluster"),
        ("status", _status, "show what runs"),
        ("shell", _shell, "open a shell in the cluster's namespaces"),
        ("logs", _logs, "print what a process has written"),
        ("kubectl", _kubectl, "run kubectl as admin"),
    ):
        command = add(name, action, text)
        command.add_argument("--dir", help="the cluster's directory; by default the only one")
        if name == "logs":
            command.add_argument("name")
        if name == "kubectl":
            command.add_argument("rest", nargs=argparse.REMAINDER)
    for name, action, text in (
        ("build-tools", _build_tools, "build the pinned tools that are not in the cache"),
        ("preflight", _preflight, "say what this machine lacks"),
    ):
        command = add(name, action, text)
        command.add_argument("--kubernetes", default="kubernetes", help="folder below tools/")
    return parser
