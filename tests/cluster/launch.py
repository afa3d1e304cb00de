"""Starts and ends the supervisor: from nothing to a running plan, and back to nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tests.cluster import certs, cleanup, control, images, plan
from tests.cluster.config import ROOT
from tests.cluster.errors import ClusterError
from tests.cluster.toolchain import Tools
from tests.cluster.wire import KEEP_FILE, LOCK_FILE, PLAN_FILE

if TYPE_CHECKING:
    from tests.cluster.images import Image
    from tests.cluster.plan import Flags

__all__ = ["ROOT", "Running", "end", "end_detached", "make_directory", "start", "wait_until_up"]

STATE_FILE = "cluster.json"
SUPERVISOR_LOG = "supervisor.log"
LONGEST_DIRECTORY = 60  # unix socket paths end at 107 characters


@dataclass(slots=True)
class Running:
    """A started supervisor: its outermost process, and the pipe whose end means its end."""

    directory: Path
    process: subprocess.Popen[bytes]
    lifeline: IO[bytes] | None
    started_at: float  # time.monotonic()


def make_directory(base: Path) -> tuple[Path, IO[str]]:
    """Make a cluster's directory and take its lock; remove what killed clusters left beside it."""
    cleanup.sweep(base)
    directory = Path(tempfile.mkdtemp(prefix=cleanup.PREFIX, dir=base)).resolve()
    if len(str(directory)) > LONGEST_DIRECTORY:
        directory.rmdir()
        raise ClusterError(f"{directory} is too long a path for unix sockets; choose another base")
    directory.chmod(0o755)
    lock = (directory / LOCK_FILE).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def start(
    directory: Path,
    lock: IO[str],
    tools: Tools,
    flags: Flags,
    wanted: tuple[Image, ...],
    *,
    keep: bool,
    detached: bool,
) -> Running:
    """Write everything the cluster needs and start its supervisor; do not wait for it."""
    if keep:
        (directory / KEEP_FILE).touch()
    plan.write_configuration(directory, tools, flags)
    archives = [
        directory / f"{image.reference.split('/')[-1].split(':')[0]}.tar" for image in wanted
    ]
    with ThreadPoolExecutor() as pool:
        signing = pool.submit(certs.write_all, directory / "certs", flags.node_name)
        list(pool.map(images.write_layout, wanted, archives))
        signing.result()
    made = plan.make_plan(directory, tools, flags, archives, lifeline=not detached)
    (directory / PLAN_FILE).write_text(made.to_json())
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    argv += [sys.executable, "-m", "tests.cluster.supervisor", str(directory / PLAN_FILE)]
    with (directory / "logs" / SUPERVISOR_LOG).open("ab") as log:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the client, which then ends the cluster
            pass_fds=(lock.fileno(),),
        )
    state = {"pid": process.pid, "tools": {k: str(getattr(tools, k)) for k in Tools.__slots__}}
    (directory / STATE_FILE).write_text(json.dumps(state))
    return Running(directory, process, process.stdin, time.monotonic())


def wait_until_up(running: Running, timeout_seconds: float) -> None:
    """Return once every component of the plan is ready.

    Raises:
        ClusterError: one of them failed, or the supervisor did.
    """
    deadline = time.monotonic() + timeout_seconds
    while not _answers(running.directory):
        if running.process.poll() is not None or time.monotonic() > deadline:
            log = running.directory / "logs" / SUPERVISOR_LOG
            tail = log.read_text()[-3000:] if log.exists() else ""
            raise ClusterError(f"the cluster's supervisor did not start:\n{tail}")
        time.sleep(0.01)
    control.request(running.directory, "up", max(deadline - time.monotonic(), 1.0))


def _answers(directory: Path) -> bool:
    # The socket's file is there a moment before anybody listens on it.
    try:
        control.supervisor_pid(directory)
    except ClusterError:
        return False
    return True


def end(running: Running, timeout_seconds: float = 20.0) -> None:
    """End a cluster and remove all it made. Idempotent.

    Raises:
        ClusterError: something is left; the message says what.
    """
    if running.lifeline is not None:
        with contextlib.suppress(OSError):
            running.lifeline.close()
    if running.process.poll() is None:
        with contextlib.suppress(ClusterError):
            control.request(running.directory, "shutdown", 1.0)
        try:
            running.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            running.process.kill()  # its child, the supervisor, is killed with it
            running.process.wait()
    if left := cleanup.remove_all(running.directory):
        raise ClusterError("the cluster left something behind: " + "; ".join(left))


def end_detached(directory: Path, timeout_seconds: float = 20.0) -> None:
    """End a cluster that another process started, through its socket or else by its pid."""
    pid = int(json.loads((directory / STATE_FILE).read_text())["pid"])
    try:
        control.request(directory, "shutdown", 1.0)
    except ClusterError:
        _kill(pid)
    deadline = time.monotonic() + timeout_seconds
    while _is_unshare(pid):
        if time.monotonic() > deadline:
            _kill(pid)
            break
        time.sleep(0.02)
    if left := cleanup.remove_all(directory):
        raise ClusterError("the cluster left something behind: " + "; ".join(left))


def _kill(pid: int) -> None:
    if _is_unshare(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


def _is_unshare(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return "(unshare)" in status and ") Z " not in status
