"""Podman as a second CDI client: containers from a directory, with CDI devices.

Debian's podman 4.3 reads /etc/cdi and /var/run/cdi and cannot be told another place, so each run
has a mount namespace of its own, in which /run is empty but for our CDI directory. Nothing of the
host changes but the cgroup, which `Podman.close` removes.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.cluster import cgroups
from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.cluster.rootfs import Member

TIMEOUT_SECONDS = 60
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


class Podman:
    """Runs containers; leaves no storage, process or mount behind.

    Args:
        directory: An empty one, for everything that podman writes.
        cdi_directory: What its containers' devices are looked up in.
        runtime: The OCI runtime. Ours: Debian's crun refuses machines with cgroups of both
            versions, and its runc hides why a container does not start.

    Raises:
        ClusterError: A program is missing, with the package that has it.
    """

    def __init__(self, directory: Path, cdi_directory: Path, runtime: Path) -> None:
        for program in ("podman", "conmon", "unshare"):
            if shutil.which(program) is None:
                raise ClusterError(f"no program {program}: apt-get install podman util-linux")
        self._directory = directory
        self._cdi_directory = cdi_directory
        self._runtime = runtime
        self._cgroup = f"hdp-{directory.name}"
        cgroups.create(self._cgroup)

    def close(self) -> None:
        """Remove the cgroup."""
        if left := cgroups.remove(self._cgroup):
            raise ClusterError(f"processes of podman's containers are left in {left}")

    def run(
        self,
        root: Path,
        devices: Sequence[str],
        *command: str,
        environment: Mapping[str, str] | None = None,
        user: str = "0",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container and return what it said and how it ended.

        Args:
            root: The container's root directory; what is written goes into a layer of its own.
            devices: CDI ids.
            command: The program and its arguments.
            environment: Of the container.
            user: Number of the user.
        """
        options = [f"--device={device}" for device in devices]
        options += [f"--env={name}={value}" for name, value in (environment or {}).items()]
        podman = [
            *("podman", f"--root={self._directory}/storage", "--runroot=/run/podman"),
            *(
                f"--tmpdir={self._directory}/temporary",
                "--storage-driver=vfs",
                "--events-backend=none",
            ),
            *("--cgroup-manager=cgroupfs", f"--runtime={self._runtime}"),
            *("run", "--rm", "--network=none", "--log-driver=none", f"--user={user}"),
            *(f"--cgroup-parent=/{self._cgroup}", "--security-opt=seccomp=unconfined"),
            *options,
            *("--rootfs", f"{root}:O", *command),
        ]
        script = (
            "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir /run/cdi; "
            f"mount --bind {shlex.quote(str(self._cdi_directory))} /run/cdi; "
            f"exec {shlex.join(podman)}"
        )
        return subprocess.run(
            [*_NAMESPACES, "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )


def unpack(members: Sequence[Member], root: Path) -> Path:
    """Write the members of a root file system into a directory; return the directory."""
    for member in members:
        path = root / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.link is not None:
            path.symlink_to(member.link)
        elif member.content is None:
            path.mkdir(exist_ok=True)
            path.chmod(member.mode)
        else:
            path.write_bytes(member.content)
            path.chmod(member.mode)
    return root
