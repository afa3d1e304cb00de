"""Root file systems that look for libraries as the images of each family of distributions do.

glibc's built-in search path is a matter of how it was configured. As `ld.so --help` prints it:
Debian and Ubuntu: /lib/<triplet>, /usr/lib/<triplet>, /lib, /usr/lib; a glibc for lib64 (Fedora
and its kin, UBI, SUSE, Amazon Linux): /lib64, /usr/lib64, and for Debian's own such build (the
package libc6-amd64 of the i386 port) /lib and /usr/lib after them; Arch: /lib and /usr/lib, with
lib64 a link to lib. Here the machine's own loader gets another family's path: the strings in it are
replaced by strings of the same length, filled up with slashes.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tests.cluster.errors import ClusterError
from tests.cluster.podman import unpack
from tests.cluster.rootfs import Member

if TYPE_CHECKING:
    from collections.abc import Sequence

TRIPLET = f"{platform.machine()}-linux-gnu"
_OWN = (f"/lib/{TRIPLET}/", f"/usr/lib/{TRIPLET}/", "/lib/", "/usr/lib/")
_LOADER = "ld-linux"

MUSL_PROBE = r"""
#include <dlfcn.h>
#include <stdio.h>

int main(void)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW);

	puts(library ? "loaded" : dlerror());
	return 0;
}
"""


def make_debian(members: Sequence[Member], root: Path, *, cache: bool) -> Path:
    """Make a root of Debian or Ubuntu, with or without an ld.so.cache (of before the driver)."""
    unpack(members, root)
    if cache:
        _run("ldconfig", "-r", str(root))
    return root


def make_lib64(members: Sequence[Member], root: Path) -> Path:
    """Make a root as Fedora, UBI and SUSE have it: libraries in /usr/lib64, and only there."""
    path = ("/lib64/", "/usr/lib64/", "/nil/", "/usr/nil/")
    return unpack(_move(members, "usr/lib64", path), root)


def make_lib(members: Sequence[Member], root: Path) -> Path:
    """Make a root as Arch has it: libraries in /usr/lib, to which /usr/lib64 is a link."""
    path = ("/lib/", "/usr/lib/", "/lib/", "/usr/lib/")
    moved = [m for m in _move(members, "usr/lib", path) if m.path != "usr/lib64"]
    return unpack([*moved, Member(path="usr/lib64", link="lib")], root)


def make_musl(root: Path) -> Path:
    """Make a root with musl's libc and one program, as of Alpine: ``/probe`` asks for libcuda.

    Raises:
        ClusterError: There is no musl on this machine.
    """
    if shutil.which("musl-gcc") is None:
        raise ClusterError("no program musl-gcc: apt-get install musl-tools")
    for folder in ("lib", "dev", "proc", "sys", "etc", "usr/lib", "run"):
        (root / folder).mkdir(parents=True)
    _run("musl-gcc", "-x", "c", "-o", str(root / "probe"), "-", stdin=MUSL_PROBE)
    loader = Path(f"/lib/ld-musl-{platform.machine()}.so.1")
    shutil.copy(loader.resolve(), root / str(loader).lstrip("/"))
    return root


def _move(members: Sequence[Member], folder: str, path: tuple[str, ...]) -> list[Member]:
    """Return a Debian root's members with all libraries in one folder, and a loader to match."""
    moved = []
    for member in members:
        place = PurePosixPath(member.path)
        if place.is_relative_to(f"usr/lib/{TRIPLET}") or place.is_relative_to("etc/ld.so.conf"):
            if member.content is None or not place.is_relative_to("usr/lib"):
                continue
            moved.append(replace(member, path=f"{folder}/{place.name}"))
        elif place.name.startswith(_LOADER):
            # The kernel finds it where every program of the ABI names it: /lib64 leads here.
            if member.content is not None:
                content = _patch(member.content, path)
                moved.append(replace(member, path=f"{folder}/{place.name}", content=content))
        else:
            moved.append(member)
    return moved


def _patch(loader: bytes, path: tuple[str, ...]) -> bytes:
    """Return a dynamic loader whose built-in search path is another."""
    old = b"".join(part.encode() + b"\0" for part in _OWN)
    if old not in loader:
        raise ClusterError(f"this machine's loader does not search {', '.join(_OWN)}")
    fitted = [new.encode().ljust(len(own), b"/") for own, new in zip(_OWN, path, strict=True)]
    if any(len(new) != len(own) for own, new in zip(_OWN, fitted, strict=True)):
        raise ClusterError(f"{path} does not fit into {_OWN}")
    return loader.replace(old, b"".join(part + b"\0" for part in fitted))


def _run(*argv: str, stdin: str = "") -> None:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{argv[0]} fails: {done.stderr}")
