"""One program in a root, in namespaces and above a layer of its own, and what it leaves behind."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.userlands.roots import UserlandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.userlands.injection import BindMount, Injection

PROGRAMS_DIR: Final = "/opt/programs"
"""Where containers find what was built for them."""
_NAMESPACES: Final = ("unshare", "--mount", "--pid", "--ipc", "--net", "--fork", "--kill-child")
_GRACE_TENTHS: Final = 20
_DEVICES: Final = ("full", "null", "random", "tty", "urandom", "zero")
_TIMEOUT_SECONDS: Final = 300
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - of the container
_ENVIRONMENT: Final = (
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C"),
    ("TERM", "dumb"),
    ("DEBIAN_FRONTEND", "noninteractive"),
)
_VOLATILE: Final = re.compile(r"var/log/|var/cache/|var/lib/apt/|.*\.pyc$")
"""Files that hold the time or the order in which something happened: their names count alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program did.

    Attributes:
        status: Its exit status, 128 and the signal's number if a signal ended it.
        stdout: What it printed.
        stderr: What it complained about.
        files: Path, kind, mode and content of what it changed; a line each.
        left: Processes, shared memory and System V IPC that it did not take away; a line each.
    """

    status: int
    stdout: str
    stderr: str
    files: tuple[str, ...]
    left: tuple[str, ...]

    def differences(self, other: Outcome) -> list[str]:
        """Return the names of the attributes in which another outcome differs."""
        names = ("status", "stdout", "stderr", "files", "left")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def run_program(
    root: Path,
    programs: Path,
    injection: Injection,
    command: Sequence[str],
    *,
    environment: Sequence[tuple[str, str]] = (),
    user: str | None = None,
) -> Outcome:
    """Run a program in a root that is not changed by it. Needs root. Leaves nothing mounted.

    Args:
        root: Of the userland.
        programs: Shown read-only as `PROGRAMS_DIR`.
        injection: What a container runtime would add.
        command: The program and its arguments.
        environment: Beyond a small one that is always there.
        user: ``user:group`` by number; else root.

    Raises:
        UserlandError: The container could not be made.
    """
    with tempfile.TemporaryDirectory(prefix="hami-dra-userland-") as text:
        base = Path(text)
        for name in ("points", "upper", "work", "merged", "report"):
            (base / name).mkdir()
        base.chmod(0o755)  # mkdtemp's mode would be the root's for other users
        _lay_mount_points(base / "points", root, injection.mounts)
        variables = dict(_ENVIRONMENT) | dict(injection.environment) | dict(environment)
        start = [
            *("chroot", *([f"--userspec={user}"] if user else []), str(base / "merged")),
            *("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items())),
        ]
        script = _write_script(_Places(base, root, programs), injection.mounts, [*start, *command])
        done = subprocess.run(
            [*_NAMESPACES, "sh", "-c", script],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
        )
        stdout = done.stdout.decode(errors="replace")
        stderr = done.stderr.decode(errors="replace")
        if not (base / "report/began").exists():
            raise UserlandError(f"no container could be made of {root}: {stderr}")
        return Outcome(
            status=done.returncode,
            stdout=stdout,
            stderr=stderr,
            files=tuple(_describe(base / "upper")),
            left=tuple(sorted((base / "report/left").read_text().splitlines())),
        )


def _lay_mount_points(points: Path, root: Path, mounts: Sequence[BindMount]) -> None:
    """Make a layer of empty files and directories to mount on, so that none is left behind.

    Directories that the root has as links stay links: the layer follows them as the root does.
    """
    for directory in ("dev", "opt", "opt/programs", "proc"):
        (points / directory).mkdir(exist_ok=True)
    for mount in mounts:
        if mount.target.startswith("/dev/"):
            continue  # in a file system of its own
        target = points / place_in(root, mount.target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if mount.source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()


def place_in(root: Path, target: str) -> Path:
    """Return a path below the root, without the links of its directories."""
    done = Path()
    for part in Path(target).parent.parts[1:]:
        place = root / done / part
        done = (
            Path(os.path.normpath(done / place.readlink())) if place.is_symlink() else done / part
        )
        if done.is_absolute():
            done = done.relative_to("/")
    return done / Path(target).name


@dataclass(frozen=True, slots=True)
class _Places:
    """The directories of one run, on the host."""

    base: Path
    root: Path
    programs: Path

    @property
    def merged(self) -> str:
        """Return where the container's root is mounted, for a shell."""
        return shlex.quote(str(self.base / "merged"))

    @property
    def report(self) -> str:
        """Return where the script writes what it saw, for a shell."""
        return shlex.quote(str(self.base / "report"))


def _write_script(places: _Places, mounts: Sequence[BindMount], command: Sequence[str]) -> str:
    base, merged, report = places.base, places.merged, places.report
    layers = f"lowerdir={base}/points:{places.root},upperdir={base}/upper,workdir={base}/work"
    lines = [
        "set -e",
        "mount --make-rprivate /",
        f"mount -t overlay overlay -o {shlex.quote(layers)} {merged}",
        f"mount -t proc proc {merged}/proc",
        f"mount -t tmpfs -o mode=755 tmpfs {merged}/dev",
        f"mkdir -m 1777 {merged}{_SHARED_MEMORY}",
        f"ln -s /proc/self/fd {merged}/dev/fd",
        *(f"touch {merged}/dev/{n} && mount --bind /dev/{n} {merged}/dev/{n}" for n in _DEVICES),
        f"mount --bind {shlex.quote(str(places.programs))} {merged}{PROGRAMS_DIR}",
        f"mount -o remount,bind,ro {merged}{PROGRAMS_DIR}",
    ]
    for mount in mounts:
        source = shlex.quote(str(mount.source))
        target = f"{merged}/{shlex.quote(str(place_in(places.root, mount.target)))}"
        if mount.target.startswith("/dev/"):
            lines.append(f"touch {target}")
        lines.append(f"mount --bind {source} {target}")
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    lines += [
        "ip link set lo up",
        f"touch {report}/began",
        "set +e",
        shlex.join(command),
        "status=$?",
        f"exec 9> {report}/left",
        # This shell is process 1; orphans become its own, and of those that are about to end (as
        # Python's servers are, who see that the other end of a pipe is gone) it is not told.
        f"for try in $(seq {_GRACE_TENTHS}); do left=",
        f"  for p in {merged}/proc/[0-9]*; do",
        "    read -r _ comm state _ 2>/dev/null < $p/stat || continue",
        '    case $p:$state in */1:*|*:Z) ;; *) left="$left$comm\\n" ;; esac',
        "  done",
        '  [ -z "$left" ] && break; sleep 0.1',
        "done",
        'printf "$left" >&9',
        f"find {merged}{_SHARED_MEMORY} -mindepth 1 -printf 'shared memory %P\\n' >&9",
        f'for k in msg sem shm; do sed "1d;s/^/$k /" {merged}/proc/sysvipc/$k; done >&9',
        "exit $status",
    ]
    return "\n".join(lines)


def _describe(upper: Path) -> list[str]:
    lines = []
    for path in sorted(upper.rglob("*")):
        name = path.relative_to(upper).as_posix()
        facts = path.lstat()
        if stat.S_ISDIR(facts.st_mode):
            what = "directory"
        elif stat.S_ISLNK(facts.st_mode):
            what = f"link to {path.readlink()}"
        elif stat.S_ISREG(facts.st_mode):
            what = "file"
            if not _VOLATILE.match(name):
                what += f" {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
        else:
            what = "removed" if facts.st_rdev == 0 else "node"
        lines.append(f"{name}: {what}, mode {stat.S_IMODE(facts.st_mode):o}")
    return lines
