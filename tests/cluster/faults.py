"""What may happen to a node, done to a test cluster's, and what has to hold meanwhile.

During a fault the API server or containerd may be away, so what a container may allocate is asked
through ``runc`` alone.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.cluster.manifests import HELD_MIB, pod, text
from tests.cluster.stack import NODE_HEALTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.cluster import Cluster
    from tests.cluster.stack import Stack

POLL_SECONDS = 0.1
RUNC_ROOT = "/run/containerd/runc/k8s.io"
SUCCESS, REFUSED = "CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY"
SYNC_SECONDS = 10
"""The kubelet's syncFrequency here; a failed Prepare is asked for again after 1 to 1.5 times it.
With the default, a minute, tests would wait for the kubelet and find nothing more."""
STARTED_SECONDS = 45.0
"""Bound of "runs again": one retry of the kubelet's and the start of pods on a loaded machine."""
STEADY = "steady"


def wait_until(
    what: str, condition: Callable[[], bool], timeout_seconds: float = STARTED_SECONDS
) -> float:
    """Return after how many seconds something held that files or processes tell, not the API.

    Raises:
        TimeoutError: It has not in time.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_seconds:
            raise TimeoutError(f"not so after {timeout_seconds:g} s: {what}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


@dataclass(frozen=True, slots=True)
class RunningPod:
    """A pod as it ran before a fault."""

    stack: Stack
    name: str
    namespace: str
    mib: int
    claim_uid: str
    container_id: str

    @classmethod
    def start(
        cls, stack: Stack, name: str, mib: int, *, namespace: str = "default", **spec: Any
    ) -> Self:
        """Create a pod with a share of a card and return it once it runs."""
        body = pod(name, gpu=1, gpumem=mib, namespace=namespace)
        body["spec"].update(spec)
        stack.cluster.apply(text(body))
        return cls.find(stack, name, mib, namespace=namespace)

    @classmethod
    def find(
        cls,
        stack: Stack,
        name: str,
        mib: int,
        *,
        namespace: str = "default",
        timeout_seconds: float = STARTED_SECONDS,
    ) -> Self:
        """Return a pod once it runs."""
        found = stack.cluster.wait_pod_running(name, namespace, timeout_seconds)
        (status,) = found["status"]["containerStatuses"]
        uid = stack.claim_of(name, namespace)["metadata"]["uid"]
        identifier = status["containerID"].removeprefix("containerd://")
        return cls(stack, name, namespace, mib, uid, identifier)

    def allocate(self, *mib: int) -> list[str]:
        """Allocate in the container beside what it holds; return the results."""
        cluster = self.stack.cluster
        done = cluster.run(
            [
                f"{cluster.tools.runc}/runc", "--root", RUNC_ROOT, "exec", self.container_id,
                "cuprobe", "alloc", "--json", *map(str, mib),
            ]
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"pod {self.name}: {done.stdout}{done.stderr}")
        return [item["result"] for item in json.loads(done.stdout)["allocations"]]

    def require_limit(self) -> None:
        """Fail unless the container may have all of its share and not one MiB more."""
        free = self.mib - HELD_MIB
        assert self.allocate(free) == [SUCCESS], f"pod {self.name} cannot have its {self.mib} MiB"
        assert self.allocate(free + 1) == [REFUSED], f"pod {self.name} has more than {self.mib} MiB"

    def require_untouched(self) -> None:
        """Fail unless the same container still runs, within its limit."""
        found = self.stack.cluster.kubectl_json("get", "pod", self.name, "-n", self.namespace)
        (status,) = found["status"]["containerStatuses"]
        identifier = status["containerID"].removeprefix("containerd://")
        seen = identifier, status["restartCount"], "running" in status["state"]
        assert seen == (self.container_id, 0, True), f"pod {self.name}: {status}"
        self.require_limit()

    def host_pid(self) -> int:
        """Return the pid of the container's first process in the cluster's PID namespace."""
        cluster = self.stack.cluster
        command = [f"{cluster.tools.runc}/runc", "--root", RUNC_ROOT, "state", self.container_id]
        return int(json.loads(cluster.run(command).stdout)["pid"])


def running_containers(cluster: Cluster) -> set[str]:
    """Return the ids of all containers that run, sandboxes included."""
    command = [f"{cluster.tools.runc}/runc", "--root", RUNC_ROOT, "list", "-f", "json"]
    listed = json.loads(cluster.run(command).stdout) or []
    return {item["id"] for item in listed if item["status"] == "running"}


# --- what is never to happen


def live_claims(stack: Stack) -> set[str]:
    """Return the UIDs of the claims that pods hold."""
    return {
        item["metadata"]["uid"]
        for item in stack.cluster.api.items("resourceclaims")
        if (item.get("status") or {}).get("reservedFor")
    }


def wait_consistent(stack: Stack, timeout_seconds: float = STARTED_SECONDS) -> None:
    """Return once CDI files, directories and ledger are those of the live claims, no more, no less.

    Raises:
        AssertionError: They are not in time, or a card is allocated twice.
    """

    def on_node() -> tuple[set[str], set[str], set[str]]:
        found = stack.leftovers()
        files = {name.rpartition("claim-")[2].removesuffix(".json") for name in found.cdi_files}
        return files, set(found.grants), set(found.ledger_rows)

    wanted = live_claims(stack)
    try:
        wait_until("", lambda: on_node() == (live_claims(stack),) * 3, timeout_seconds)
    except TimeoutError:
        raise AssertionError(f"claims {wanted}; CDI, directories, ledger: {on_node()}") from None
    require_no_overlap(stack)


def require_no_overlap(stack: Stack) -> None:
    """Fail if the ledger gives away more of a card than is published."""
    published = {
        device["name"]: {key: _base(value["value"]) for key, value in device["capacity"].items()}
        for device in stack.devices()
    }
    taken = stack.read_ledger(
        "SELECT device, sum(memory_mib) * 1048576, sum(cores), sum(slots) FROM shares "
        "GROUP BY device"
    )
    for device, *sums in taken:
        limits = [published[device][key] for key in ("memory", "cores", "slots")]
        assert all(a <= b for a, b in zip(sums, limits, strict=True)), (device, sums, limits)


def _base(quantity: str) -> int:
    for suffix, factor in (("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)):
        if quantity.endswith(suffix):
            return int(quantity.removesuffix(suffix)) * factor
    return int(quantity)


def wait_ready(stack: Stack, timeout_seconds: float = STARTED_SECONDS) -> float:
    """Return after how many seconds /readyz says that everything is well."""
    return wait_until("ready", lambda: _all_ok(stack.readiness(NODE_HEALTH)), timeout_seconds)


def wait_reason(stack: Stack, words: str, timeout_seconds: float = STARTED_SECONDS) -> float:
    """Return after how many seconds /readyz gave a reason."""
    return wait_until(
        f"/readyz says {words!r}",
        lambda: words in stack.readiness(NODE_HEALTH),
        timeout_seconds,
    )


def _all_ok(report: str) -> bool:
    lines = report.strip().splitlines()
    return bool(lines) and all(line.endswith(": ok") for line in lines)


def wait_prepare_failed(stack: Stack, name: str, words: str, timeout_seconds: float = 90.0) -> str:
    """Return the Event on a pod that says, with these words, that Prepare failed."""

    def messages(items: list[dict[str, Any]]) -> list[str]:
        return [
            str(item["message"])
            for item in items
            if item["reason"] == "FailedPrepareDynamicResources"
            and item["involvedObject"]["name"] == name
            and words in item["message"]
        ]

    found = stack.cluster.wait_for_all(
        "events", lambda items: bool(messages(items)), timeout_seconds=timeout_seconds
    )
    return messages(found)[-1]


# --- faults


@contextmanager
def stopped(stack: Stack, name: str) -> Iterator[None]:
    """Stop a process with SIGSTOP; it goes on at the end of the block."""
    stack.cluster.signal_process(name, signal.SIGSTOP)
    try:
        yield
    finally:
        stack.cluster.signal_process(name, signal.SIGCONT)


@contextmanager
def away(cluster: Cluster, *names: str) -> Iterator[None]:
    """Kill processes; at the end of the block they start, in this order, as they were."""
    for name in reversed(names):
        cluster.stop_process(name, signal.SIGKILL)
    try:
        yield
    finally:
        for name in names:
            cluster.start_again(name)


@contextmanager
def full(cluster: Cluster, directory: Path) -> Iterator[None]:
    """Fill a small file system to its last block; that room is free when the context ends."""
    filler = cluster.inside(directory) / f"filler-{uuid.uuid4()}"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


class ShiftedClock:
    """The wall clock of the node process, which this test may turn."""

    def __init__(self, stack: Stack) -> None:
        directory = stack.cluster.directory
        source = __file__.replace("faults.py", "clockshift.c")
        library = directory / "clockshift.so"
        self._file = directory / "clockshift"
        self.turn(0)
        command = ["cc", "-std=c11", "-O2", "-fPIC", "-shared", "-o", str(library), source, "-ldl"]
        subprocess.run(command, check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT_FILE": str(self._file)}

    def turn(self, seconds: int) -> None:
        """Let the clock be wrong by so many seconds from now on."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))


def lose_power(stack: Stack) -> None:
    """End everything on the node at once and forget what no disk keeps; the node stays off.

    The control plane is another machine. Kept are the disks: the kubelet's directory with its
    checkpoints and dead sockets, containerd's images and metadata, our state directory.
    """
    cluster = stack.cluster
    for name in ("node", "kubelet", "containerd"):
        cluster.stop_process(name, signal.SIGKILL)
    done = cluster.run([sys.executable, "-c", _POWER_CUT, str(cluster.directory)])
    if done.returncode != 0:
        raise RuntimeError(f"the power cut failed: {done.stderr}")
    # A new boot: the kernel tells it to everybody by this file.
    boot = cluster.directory / "boot-id"
    boot.unlink(missing_ok=True)
    boot.write_text(f"{uuid.uuid4()}\n")
    mounted = cluster.run(["mount", "-n", "--bind", str(boot), "/proc/sys/kernel/random/boot_id"])
    if mounted.returncode != 0:
        raise RuntimeError(f"no new boot id: {mounted.stderr}")


def power_on(stack: Stack) -> None:
    """Start the node's programs in the order in which a real one does."""
    for name in ("containerd", "kubelet", "node"):
        stack.cluster.start_again(name, wait=name != "node")


_POWER_CUT = """
import os, pathlib, shutil, signal, subprocess, sys, time

directory = sys.argv[1]
deadline = time.monotonic() + 20

def doomed():
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            comm = (entry / "comm").read_text().strip()
            groups = (entry / "cgroup").read_text()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and (comm.startswith("containerd-shim") or "/kubepods/" in groups):
            yield int(entry.name)

while pids := list(doomed()):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if time.monotonic() > deadline:
        sys.exit(f"still there: {pids}")
    time.sleep(0.02)

places = [f"{directory}/containerd/state", "/run/netns", "/run/containerd", f"{directory}/cdi"]
volatile = [*places[:3], f"{directory}/kubelet/pods"]
points = [line.split(" ")[4] for line in open("/proc/self/mountinfo")]
for point in reversed(points):
    if any(point.startswith(place + "/") for place in volatile):
        subprocess.run(["umount", "-n", "-l", point], check=True)
for place in places:
    for entry in pathlib.Path(place).iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
subprocess.run(["ip", "link", "del", "cni0"], check=True)
"""
