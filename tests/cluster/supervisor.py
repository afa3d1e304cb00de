"""PID 1 of a cluster: prepares the namespaces, starts the plan, obeys the client, ends everything.

Run by ``unshare`` as ``python -m tests.cluster.supervisor PLAN``. It decides nothing by itself and
restarts nothing. When it ends, for whatever reason, the kernel ends every process of the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster import cgroups, cleanup, probes
from tests.cluster.errors import ClusterError
from tests.cluster.processes import Entry, Processes
from tests.cluster.wire import CONTROL_SOCKET, NODE_ADDRESS, Component, Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LINKS = f"""\
link set lo up
link add hdc0 type veth peer name hdc1
addr add {NODE_ADDRESS}/24 dev hdc0
link set hdc0 up
link set hdc1 up
"""
PRIVATE = ("/var/lib", "/var/log")  # programs write to fixed places below these


def prepare_namespaces(plan: Plan) -> None:
    """Set up mounts, network and cgroup: after it nothing that is written reaches the host."""
    directory = Path(plan.directory)
    _do("mount", "-n", "--make-rprivate", "/")  # -n: nothing is noted in the host's /run
    _do("mount", "-n", "--make-rshared", "/")  # among ourselves, as systemd has it on a real node
    scratch = directory / "private"
    scratch.mkdir(exist_ok=True)
    _do("mount", "-n", "-t", "tmpfs", "-o", "size=256m,mode=0755", "private", str(scratch))
    for number, place in enumerate(PRIVATE):
        upper, work = scratch / f"upper{number}", scratch / f"work{number}"
        upper.mkdir()
        work.mkdir()
        options = f"lowerdir={place},upperdir={upper},workdir={work}"
        _do("mount", "-n", "-t", "overlay", "-o", options, "private", place)
    _do("mount", "-n", "-t", "tmpfs", "-o", "size=64m,mode=0755", "private", "/run")
    Path("/run/netns").mkdir()
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{NODE_ADDRESS} {plan.hosts_name}\n")
    if Path("/etc/hosts").exists():
        _do("mount", "-n", "--bind", str(hosts), "/etc/hosts")
    if cleanup.filesystem_of(directory, cgroups.MOUNTINFO.read_text()) == "overlay":
        images = directory / "containerd"  # overlayfs cannot have its upper layer on overlayfs
        images.mkdir(exist_ok=True)
        _do("mount", "-n", "-t", "tmpfs", "-o", "mode=0755", "private", str(images))
    for place, options in plan.tmpfs.items():
        Path(place).mkdir(exist_ok=True)
        _do("mount", "-n", "-t", "tmpfs", "-o", options, "small", place)
    subprocess.run(["ip", "-batch", "-"], input=LINKS, text=True, check=True)
    cgroups.create(plan.cgroup)


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True)


class Supervisor:
    """The running cluster as its client sees it through the control socket."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._directory = Path(plan.directory)
        self._processes = Processes(self._directory)
        self._over = asyncio.Event()
        self._up = asyncio.Event()
        self._failure = ""

    async def run(self) -> None:
        """Serve until told to shut down, or until the client is gone."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._processes.reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._over.set)
        if self._plan.lifeline:
            threading.Thread(target=self._watch_lifeline, args=(loop,), daemon=True).start()
        for path, (host, port) in self._plan.relays.items():
            await probes.serve_relay(path, host, port)
        await asyncio.start_unix_server(self._serve, str(self._directory / CONTROL_SOCKET))
        starting = asyncio.create_task(self._start_plan(), name="plan")
        await self._over.wait()
        starting.cancel()

    def _watch_lifeline(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        loop.call_soon_threadsafe(self._over.set)

    async def _start_plan(self) -> None:
        try:
            entries = {c.name: self._processes.add(c) for c in self._plan.components}
            async with asyncio.TaskGroup() as group:
                for entry in entries.values():
                    group.create_task(self._start_one(entry, entries))
        except* ClusterError as errors:
            self._failure = "\n".join(str(error) for error in errors.exceptions)
        self._up.set()

    async def _start_one(self, entry: Entry, entries: dict[str, Entry]) -> None:
        for name in entry.component.after:
            await entries[name].ready.wait()
        self._processes.spawn(entry)
        await self._processes.become_ready(entry)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request.get("op", "")
            operations: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
                "up": self._op_up,
                "start": self._op_start,
                "stop": self._op_stop,
                "restart": self._op_restart,
                "again": self._op_again,
                "wait": self._op_wait,
                "status": self._op_status,
                "shutdown": self._op_shutdown,
            }
            if name not in operations:
                return {"ok": False, "error": f"unknown operation {name!r}"}
            return {"ok": True, "result": await operations[name](request)}
        except (ClusterError, KeyError, ValueError, TypeError, AttributeError) as error:
            return {"ok": False, "error": f"{error}" if str(error) else type(error).__name__}

    async def _op_up(self, _request: dict[str, Any]) -> Any:
        await self._up.wait()
        if self._failure:
            raise ClusterError(self._failure)
        return await self._op_status(_request)

    async def _op_start(self, request: dict[str, Any]) -> Any:
        entry = self._processes.add(Component.from_json(request["component"]))
        self._processes.spawn(entry)
        await self._processes.become_ready(entry)
        return entry.report()

    async def _op_stop(self, request: dict[str, Any]) -> Any:
        number = int(request.get("signal", signal.SIGTERM))
        return await self._processes.stop(request["name"], number, float(request["timeout"]))

    async def _op_restart(self, request: dict[str, Any]) -> Any:
        await self._op_stop(request)
        return await self._op_again(request)

    async def _op_again(self, request: dict[str, Any]) -> Any:
        entry = self._processes.add(self._processes.entry(request["name"]).component)
        self._processes.spawn(entry)
        if request.get("wait", True):
            await self._processes.become_ready(entry)
        return entry.report()

    async def _op_wait(self, request: dict[str, Any]) -> Any:
        entry = self._processes.entry(request["name"])
        try:
            async with asyncio.timeout(float(request["timeout"])):
                await entry.exited.wait()
        except TimeoutError:
            raise ClusterError(f"{request['name']} has not ended in time") from None
        return entry.report()

    async def _op_status(self, _request: dict[str, Any]) -> Any:
        return [entry.report() for entry in self._processes.entries.values()]

    async def _op_shutdown(self, _request: dict[str, Any]) -> Any:
        asyncio.get_running_loop().call_later(0.01, self._over.set)
        return None


def end_everything(directory: Path) -> list[str]:
    """Kill every other process of the namespace, then remove cgroups, mounts and the directory."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os.chdir("/")
    return cleanup.remove_all(directory)


def main(arguments: list[str]) -> int:
    """Be PID 1 of a new PID namespace until the cluster is over."""
    if os.getpid() != 1:
        print("the supervisor has to be PID 1 of its own namespace", file=sys.stderr)
        return 2
    plan = Plan.from_json(Path(arguments[0]).read_text())
    try:
        prepare_namespaces(plan)
        asyncio.run(Supervisor(plan).run())
    finally:
        left = end_everything(Path(plan.directory))
    for line in left:
        print(line, file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
