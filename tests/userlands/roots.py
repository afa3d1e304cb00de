"""Debian's releases as root file systems, made once per machine by debootstrap.

A root lands in ``<cache>/userlands/<release>-<key>`` where the key covers what decides its content,
and is never written to again: programs run in a layer above it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.toolchain import cache_root

_COMMON: Final = (
    *("ca-certificates", "git", "libc6-i386", "libgomp1", "libjemalloc2", "musl", "nodejs"),
    *("default-jre-headless", "perl", "procps", "python3", "sudo"),
)
_TIMEOUT_SECONDS: Final = 1800


class UserlandError(Exception):
    """Something that the userlands need is not to be had; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release of Debian.

    Attributes:
        name: As the mirror calls it.
        packages: What is installed beyond debootstrap's smallest set.
    """

    name: str
    packages: tuple[str, ...] = _COMMON

    @property
    def key(self) -> str:
        """Return 12 hex digits that change whenever another root would be made."""
        text = f"{self.name} {self.packages} {os.uname().machine}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


_COMPILERS: Final = (
    "default-jdk-headless",
    "gcc-multilib",
    "libc6-dev",
    "libjemalloc-dev",
    "musl-tools",
    "rustc",
)

OLDEST: Final = Release(name="bullseye", packages=(*_COMMON, *_COMPILERS))
"""It also compiles what has to run in all of them, but for libvgpu, which is the shipped one."""

RELEASES: Final = (
    OLDEST,
    Release(name="bookworm"),
    Release(name="trixie"),
    Release(name="sid"),
)
"""Oldest first. Debian's mirrors keep no older one: those are in an archive of their own."""


def ensure_root(release: Release, cache: Path | None = None) -> Path:
    """Return a release's root directory, and make it if it is not there.

    Idempotent, and safe to call from several processes at once. Needs root, and the network only
    when something has to be made. Nothing is left mounted.

    Raises:
        UserlandError: debootstrap is missing or failed.
    """
    folder = (cache or cache_root()) / "userlands"
    final = folder / f"{release.name}-{release.key}"
    if final.is_dir():
        return final
    if shutil.which("debootstrap") is None:
        raise UserlandError("no program debootstrap: apt-get install debootstrap")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{release.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not final.is_dir():
            _make(release, folder, final)
    return final


def _make(release: Release, folder: Path, final: Path) -> None:
    print(f"userlands: debootstrap {release.name} (some minutes)", file=sys.stderr, flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix=f".making-{release.name}-", dir=folder, ignore_cleanup_errors=True
    ) as text:
        scratch = Path(text, "root")
        command = [
            *("debootstrap", "--variant=minbase", f"--include={','.join(release.packages)}"),
            release.name,
            str(scratch),
        ]
        script = f"mount --make-rprivate / && exec {shlex.join(command)}"
        done = subprocess.run(
            # A namespace of its own: what debootstrap mounts goes with it, also when it fails.
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        )
        if done.returncode:
            log = scratch / "debootstrap/debootstrap.log"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise UserlandError(
                f"debootstrap of {release.name} failed:\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}{tail}"
            )
        shutil.rmtree(scratch / "var/cache/apt/archives", ignore_errors=True)
        Path(text).chmod(0o755)
        scratch.rename(final)
    print(f"userlands: {final} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
