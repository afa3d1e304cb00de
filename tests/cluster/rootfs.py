"""A small root file system from the host's own programs and the libraries they need."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NEEDED = ("sh", "cat", "ls", "sleep", "head", "env", "id")
WELCOME = (
    *("mount", "umount", "grep", "stat", "touch", "rm", "cp", "mkdir", "wc", "tr", "kill", "seq"),
    *(
        "date",
        "echo",
        "printf",
        "true",
        "false",
        "test",
        "readlink",
        "find",
        "timeout",
        "tail",
        "cut",
    ),
    *("sed", "df", "uname", "od", "tee", "sort", "mkfifo"),
)
LIBRARIES = ("libdl.so.2", "libpthread.so.0", "librt.so.1", "libm.so.6")
FOLDERS = (
    *("dev", "etc", "proc", "root", "run", "sys", "var"),
    *("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "usr/local/lib"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file, a symbolic link, or (with neither content nor link) a directory."""

    path: str
    mode: int = 0o755
    content: bytes | None = None
    link: str | None = None


def parse_ldd(text: str) -> list[str]:
    """Return the absolute paths of the libraries and the loader in ldd's output."""
    return re.findall(r"(/\S+) \(0x[0-9a-f]+\)", text)


def host_tools(added: Mapping[str, bytes]) -> tuple[Member, ...]:
    """Return the members of a root with a shell, basic tools, libc, and the added programs.

    Raises:
        ClusterError: the host lacks a program that the image needs.
    """
    found = {name: shutil.which(name, path="/bin:/usr/bin") for name in (*NEEDED, *WELCOME)}
    if lacking := [name for name in NEEDED if found[name] is None]:
        raise ClusterError(f"the host lacks {', '.join(lacking)} for the test image")
    tools = {f"/usr/bin/{name}": Path(path).resolve() for name, path in found.items() if path}
    libraries = _closure(tools.values())
    files = {_merged(place): source.read_bytes() for place, source in tools.items()}
    files |= {_merged(library): Path(library).resolve().read_bytes() for library in libraries}
    folders = sorted({str(PurePosixPath(_merged(library)).parent) for library in libraries})
    return lay_out({**files, **added}, folders)


def lay_out(programs: Mapping[str, bytes], library_folders: Iterable[str]) -> tuple[Member, ...]:
    """Return the members of a root that holds the given programs and libraries, and all folders."""
    texts = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        "etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "etc/ld.so.conf": "".join(f"/{f}\n" for f in ("usr/local/lib", *library_folders)),
    }
    members = {path: Member(path=path, content=content) for path, content in programs.items()}
    for path, text in texts.items():
        members[path] = Member(path=path, mode=0o644, content=text.encode())
    for top in ("bin", "sbin", "lib", "lib64"):
        members[top] = Member(path=top, mode=0o777, link=f"usr/{top}")
    for folder in FOLDERS:
        members[folder] = Member(path=folder)
    members["tmp"] = Member(path="tmp", mode=0o1777)
    for path in list(members):
        for parent in PurePosixPath(path).parents:
            members.setdefault(str(parent), Member(path=str(parent)))
    members.pop(".", None)
    return tuple(members[path] for path in sorted(members))


def _merged(path: str) -> str:
    """Return a path as it is in a root where /bin, /sbin, /lib and /lib64 point into /usr."""
    relative = path.lstrip("/")
    return relative if relative.startswith("usr/") else f"usr/{relative}"


def _closure(programs: Iterable[Path]) -> set[str]:
    done = subprocess.run(
        ["ldd", *sorted({str(p) for p in programs})], capture_output=True, text=True, check=False
    )
    libraries = parse_ldd(done.stdout)
    if not libraries:
        raise ClusterError("ldd finds no library of the host's shell; the test image needs libc")
    folder = next(Path(path).parent for path in libraries if Path(path).name.startswith("libc.so"))
    more = [str(folder / name) for name in LIBRARIES if (folder / name).exists()]
    return {*libraries, *more}
