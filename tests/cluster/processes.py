"""The supervisor's table of processes: starting, stopping, reaping, and the memory of all that.

PID 1 has to reap every orphan of its namespace, so one ``waitpid`` serves all and nothing else in
the supervisor may wait for a child.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.cluster import probes
from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.wire import Component

TAIL_BYTES = 3000


@dataclass(slots=True)
class Entry:
    """One component and what became of it."""

    component: Component
    state: str = "waiting"  # waiting, starting, running, exited, failed
    pid: int = 0
    exit_status: int | None = None
    milestones: dict[str, float] = field(default_factory=dict)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""

    def report(self) -> dict[str, Any]:
        """Return what the client is told."""
        return {
            "name": self.component.name,
            "state": self.state,
            "pid": self.pid,
            "exit_status": self.exit_status,
            "milestones": self.milestones,
            "error": self.error,
        }


class Processes:
    """All components of one cluster, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started = time.monotonic()
        self._children: dict[int, Entry] = {}
        self._handles: dict[int, subprocess.Popen[bytes]] = {}
        self.entries: dict[str, Entry] = {}

    def entry(self, name: str) -> Entry:
        """Return the entry of a component that was started at least once."""
        if name not in self.entries:
            raise ClusterError(f"no process is called {name!r}")
        return self.entries[name]

    def add(self, component: Component) -> Entry:
        """Enter a component that is to be started; one of that name must not be running."""
        old = self.entries.get(component.name)
        if old is not None and old.state in {"starting", "running"} and not old.exited.is_set():
            raise ClusterError(f"process {component.name!r} is running already (pid {old.pid})")
        self.entries[component.name] = Entry(component)
        return self.entries[component.name]

    def spawn(self, entry: Entry) -> None:
        """Start a component's process; its output goes to its log."""
        component = entry.component
        log = self._directory / "logs" / f"{component.name}.log"
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(
                    component.argv,
                    env=dict(component.env),
                    cwd=component.cwd or self._directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            entry.state = "failed"
            entry.error = f"{component.name}: {error}"
            raise ClusterError(entry.error) from error
        entry.pid = child.pid
        entry.state = "starting"
        self._children[child.pid] = entry
        self._handles[child.pid] = child
        self._mark(entry, "started")
        (self._directory / "pids" / component.name).write_text(f"{child.pid}\n")

    async def become_ready(self, entry: Entry) -> None:
        """Wait until a started component is ready.

        Raises:
            ClusterError: it ended too early, or took too long; with the end of its log.
        """
        name, ready = entry.component.name, entry.component.ready
        exited = asyncio.create_task(entry.exited.wait(), name=f"{name} exited")
        waits = {exited}
        probe: asyncio.Task[Any] | None = None
        if ready not in {"started", "exited"}:
            probe = asyncio.create_task(probes.wait_until_answering(ready), name=f"{name} ready")
            waits = {exited, probe}
        try:
            if ready != "started":
                await asyncio.wait(
                    waits,
                    timeout=entry.component.timeout_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            exited.cancel()
            if probe is not None:
                probe.cancel()
        if ready == "exited":
            good = entry.exited.is_set() and entry.exit_status == 0
        else:
            good = not entry.exited.is_set() and (probe is None or probe.done())
        if not good:
            how = (
                f"ended with status {entry.exit_status}"
                if entry.exited.is_set()
                else f"was not ready after {entry.component.timeout_seconds:.0f} s"
            )
            entry.state = "failed"
            entry.error = f"{name} {how}; the end of its log:\n{self.tail(name)}"
            raise ClusterError(entry.error)
        if not entry.exited.is_set():
            entry.state = "running"
        self._mark(entry, "ready")
        entry.ready.set()

    async def stop(self, name: str, number: int, timeout_seconds: float) -> dict[str, Any]:
        """Send a signal to one process (not to its children) and wait until it has ended.

        It is killed if it is still there after the timeout, which the answer says.
        """
        entry = self.entry(name)
        killed = False
        if entry.pid and not entry.exited.is_set():
            os.kill(entry.pid, number)
            try:
                async with asyncio.timeout(timeout_seconds):
                    await entry.exited.wait()
            except TimeoutError:
                killed = True
                os.kill(entry.pid, signal.SIGKILL)
                await entry.exited.wait()
        return {**entry.report(), "killed": killed}

    def reap(self) -> None:
        """Collect every child that has ended; called on SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            entry = self._children.pop(pid, None)
            if entry is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._handles.pop(pid).returncode = code
            entry.exit_status = code
            if entry.state != "failed":
                entry.state = "exited"
            self._mark(entry, "exited")
            entry.exited.set()

    def tail(self, name: str) -> str:
        """Return the end of a component's log."""
        try:
            content = (self._directory / "logs" / f"{name}.log").read_bytes()
        except OSError:
            return ""
        return content[-TAIL_BYTES:].decode(errors="replace")

    def _mark(self, entry: Entry, what: str) -> None:
        entry.milestones[what] = round(time.monotonic() - self._started, 3)
