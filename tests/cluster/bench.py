"""Measures a start up to a running pod, and checks that a killed client leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import cgroups, cleanup
from tests.cluster.cluster import Cluster
from tests.cluster.config import ROOT, Config
from tests.cluster.errors import ClusterError
from tests.cluster.images import CUDA_TEST

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET_SECONDS = 12.0
POD = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: bench}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {CUDA_TEST}
    command: [sh, -c, "echo ready; exec sleep 3600"]
    resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}
"""


def run(config: Config, runs: int) -> int:
    """Print the time to each milestone for a number of runs; return 1 if one was too slow."""
    slowest = 0.0
    for number in range(1, runs + 1):
        times, began = [], time.monotonic()
        with Cluster.start(config) as cluster:
            before = time.monotonic() - began
            offset = cluster.launched_at - began
            for name in ("etcd", "kube-apiserver", "kubelet"):
                ready = cluster.process_status(name)["milestones"]["ready"]
                times.append(f"{name} {ready + offset:.1f}")
            times.append(f"node Ready {before:.1f}")
            cluster.apply(POD)
            cluster.wait_pod_running("bench")
            times.append(f"pod Running {time.monotonic() - began:.1f}")
            _until(partial(_said_ready, cluster), 5.0)
            cluster.exec("bench", "cat", "/etc/passwd")
            slowest = max(slowest, total := time.monotonic() - began)
            times.append(f"logs and exec {total:.1f}")
            ending = time.monotonic()
        times.append(f"ended in {time.monotonic() - ending:.1f}")
        print(f"run {number}: " + ", ".join(times) + " (s)", flush=True)
    print(f"slowest {slowest:.1f} s, target {TARGET_SECONDS:.0f} s")
    return 0 if slowest <= TARGET_SECONDS else 1


def check_kill(config: Config) -> int:
    """Start a cluster with a pod in another process, kill that process, look for remains."""
    build = str(config.build)
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from tests.cluster.cluster import Cluster, Config\n"
        "from tests.cluster.bench import POD\n"
        "c = Cluster.start(Config(build=Path(sys.argv[1])))\n"
        "c.apply(POD); c.wait_pod_running('bench')\n"
        "print(c.directory, flush=True); time.sleep(3600)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script, build], stdout=subprocess.PIPE, text=True, env=env
    ) as child:
        line = child.stdout.readline().strip() if child.stdout is not None else ""
        if not line:
            raise ClusterError("the cluster that was to be killed did not start")
        directory = Path(line)
        print(f"{directory} runs; killing its client")
        killed = time.monotonic()
        child.send_signal(signal.SIGKILL)
    gone = _until(lambda: not remains(directory), 15.0)
    left = remains(directory)
    for what in left:
        print(f"left: {what}", file=sys.stderr)
    if gone:
        print(f"nothing is left after {time.monotonic() - killed:.1f} s")
    return 1 if left else 0


def remains(directory: Path) -> list[str]:
    """Return what a cluster has left: directory, processes, mounts and cgroups that name it."""
    found = [str(directory)] if directory.exists() else []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{directory}/" in command:
            found.append(f"process {process.parent.name}: {command[:100]}")
    mounts = cleanup.mounts_below(directory, cgroups.MOUNTINFO.read_text())
    found += [f"mount {point}" for point in mounts]
    groups = (h.mount / directory.name for h in cgroups.hierarchies())
    found += [f"cgroup {group}" for group in groups if group.exists()]
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=False).stdout
    found += [f"link {name}" for name in ("hdc0", "hdc1") if f" {name}" in links]
    return found


def _said_ready(cluster: Cluster) -> bool:
    return cluster.pod_logs("bench") == "ready\n"


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
