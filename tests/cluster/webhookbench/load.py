"""The load generator, and what it costs the process that it loads."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tests.cluster.cluster import Cluster

CLIENTS = 16
_GET = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())"


@dataclass(frozen=True, slots=True)
class Load:
    """What came of posting.

    Attributes:
        count: Requests.
        seconds: For all of them.
        p50_ms: Median of a request's latency.
        p99_ms: Of a hundred requests, the slowest but one takes so long.
        example: One of the answers.
    """

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float
    example: str

    @property
    def per_second(self) -> float:
        """Requests per second."""
        return self.count / self.seconds


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far.

    Attributes:
        cpu_seconds: User and system time.
        rss_mib: Resident now.
        peak_mib: The most that ever was resident.
    """

    cpu_seconds: float
    rss_mib: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Generator:
    """Posts to servers in a cluster.

    Attributes:
        cluster: Where it runs.
        programs: Where ``postload`` is.
    """

    cluster: Cluster
    programs: Path

    def write_bodies(self, name: str, bodies: Iterable[bytes]) -> Path:
        """Write bodies into a file, one a line."""
        path = self.cluster.directory / f"{name}.jsonl"
        with path.open("wb") as file:
            file.writelines(body + b"\n" for body in bodies)
        return path

    def create(self, path: str, bodies: Path, count: int) -> Load:
        """Create objects in the API server as the admin.

        Raises:
            ClusterError: One was refused.
        """
        certs = self.cluster.directory / "certs"
        return self.post(
            f"https://127.0.0.1:6443{path}",
            bodies,
            count,
            ("-token-file", str(certs / "admin.token"), "-ca", str(certs / "ca.crt")),
        )

    def post(
        self, url: str, bodies: Path, count: int, more: Sequence[str], *, cpu: int | None = None
    ) -> Load:
        """Post bodies in turn until there are ``count`` answers, with `CLIENTS` at once.

        Raises:
            ClusterError: One was not 2xx.
        """
        pin = [] if cpu is None else ["taskset", "-c", str(cpu)]
        command = [
            *pin, str(self.programs / "postload"), "-url", url, "-bodies", str(bodies),
            "-count", str(count), "-clients", str(CLIENTS), *more,
        ]  # fmt: skip
        done = self.cluster.run(command, timeout_seconds=300)
        if done.returncode != 0:
            raise ClusterError(f"postload: {done.stderr}")
        found = json.loads(done.stdout)
        if any(not status.startswith("2") for status in found["status"]):
            raise ClusterError(f"POST {url}: {found['status']}: {found['failure']}")
        return Load(count, found["seconds"], found["p50_ms"], found["p99_ms"], found["example"])


def read_usage(cluster: Cluster, process: str) -> Usage:
    """Return what a process of the cluster has used."""
    pid = cluster.process_status(process)["pid"]
    said = cluster.run(["cat", f"/proc/{pid}/stat", f"/proc/{pid}/status"]).stdout
    stat, _, status = said.partition("\n")
    fields = stat.rpartition(")")[2].split()
    sizes = {
        line.split(":")[0]: int(line.split()[1]) / 1024
        for line in status.splitlines()
        if line.endswith(" kB")
    }
    ticks = int(fields[11]) + int(fields[12])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), sizes["VmRSS"], sizes["VmHWM"])


def get_text(cluster: Cluster, url: str) -> str:
    """Return what a plain HTTP server in the cluster says.

    Raises:
        ClusterError: It does not answer.
    """
    done = cluster.run([sys.executable, "-c", _GET, url])
    if done.returncode != 0:
        raise ClusterError(f"GET {url}: {done.stderr}")
    return done.stdout
