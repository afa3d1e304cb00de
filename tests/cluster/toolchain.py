"""Builds the pinned Kubernetes tools once, into a cache outside the checkout.

Each folder under ``tools/`` pins one module. Its programs land in
``<cache>/tools/<folder>-<key>/bin``, where the key covers everything that decides what is built, so
a changed pin builds anew and an unchanged one never does. Two builders at once wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import golang, seccomp
from tests.cluster.errors import ToolchainError

PINS = Path(__file__).resolve().parent / "tools"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One folder under ``tools/`` and how its programs are built."""

    folder: str
    packages: tuple[str, ...]
    rename: tuple[str, str] | None = None  # (what go calls the program, what we call it)
    tags: str = ""
    ldflags: str = "-s -w"
    cgo: bool = False


BENCH = Pin(folder="bench", packages=("./constantpatch", "./postload"))
CDI = Pin(folder="cdi", packages=("./cdicheck",))
ORACLES = (Pin(folder="oracle-1.36", packages=(".",)), Pin(folder="oracle", packages=(".",)))
"""kube-scheduler's allocator of each supported Kubernetes, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Where the built programs are."""

    kubernetes: Path
    kubernetes_version: str
    etcd: Path
    containerd: Path
    runc: Path
    cni: Path

    @property
    def search_path(self) -> str:
        """All program folders, as a PATH prefix."""
        folders = (self.kubernetes, self.etcd, self.containerd, self.runc, self.cni)
        return os.pathsep.join(str(folder) for folder in folders)


_PLENTY_KIB = 12 << 20


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder that keeps what is built once per machine."""
    env = os.environ if environ is None else environ
    if own := env.get("HAMI_DRA_CACHE"):
        return Path(own)
    if xdg := env.get("XDG_CACHE_HOME"):
        return Path(xdg) / "hami-dra"
    return Path(env.get("HOME", "/root")) / ".cache" / "hami-dra"


def pinned_version(go_mod: str, module: str) -> str:
    """Return the version of ``module`` in a go.mod's text, as ``v1.37.1``."""
    found = re.search(rf"^(?:require\s+)?\s*{re.escape(module)}\s+(v\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise ToolchainError(f"{module} is not required by its go.mod")
    return found.group(1)


def kubernetes_ldflags(version: str) -> str:
    """Return linker flags that make the programs report ``version`` as a release does."""
    major, minor = version.removeprefix("v").split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    settings = [
        f"-X {package}.{key}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in values.items()
    ]
    return " ".join(["-s -w", *settings])


def pins(kubernetes: str = "kubernetes") -> tuple[Pin, ...]:
    """Return every pin; ``kubernetes`` names the folder that decides the cluster's version."""
    version = pinned_version((PINS / kubernetes / "go.mod").read_text(), "k8s.io/kubernetes")
    commands = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
    containerd = ("containerd", "containerd-shim-runc-v2", "ctr")
    plugins = ("main/bridge", "main/loopback", "ipam/host-local")
    return (
        Pin(
            folder="etcd",
            packages=("go.etcd.io/etcd/server/v3",),
            rename=("server", "etcd"),
        ),
        Pin(
            folder="containerd",
            packages=tuple(f"github.com/containerd/containerd/v2/cmd/{c}" for c in containerd),
            tags="no_btrfs no_devmapper no_zfs",
        ),
        Pin(
            folder="runc",
            packages=("github.com/opencontainers/runc",),
            tags="seccomp",
            cgo=True,
        ),
        Pin(
            folder="cni",
            packages=tuple(f"github.com/containernetworking/plugins/plugins/{p}" for p in plugins),
        ),
        Pin(
            folder=kubernetes,
            packages=tuple(f"k8s.io/kubernetes/cmd/{c}" for c in commands),
            ldflags=kubernetes_ldflags(version),
        ),
    )


def cache_key(pin: Pin, files: Mapping[str, bytes]) -> str:
    """Return 12 hex digits that change whenever what is built would change."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    digest.update(repr(pin).encode())
    digest.update(os.uname().machine.encode())
    return digest.hexdigest()[:12]


def destination(pin: Pin, cache: Path) -> Path:
    """Return the folder that holds this pin's ``bin`` once it is built."""
    folder = PINS / pin.folder
    sources = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sources}
    return cache / "tools" / f"{pin.folder}-{cache_key(pin, files)}"


def missing(kubernetes: str = "kubernetes") -> list[str]:
    """Return the folders whose programs are not in the cache yet."""
    cache = cache_root()
    return [p.folder for p in pins(kubernetes) if not (destination(p, cache) / "bin").is_dir()]


def ensure_tools(kubernetes: str = "kubernetes", say: Say | None = None) -> Tools:
    """Build whatever is not in the cache, and say where everything is.

    Idempotent, and safe to call from several processes at once. Needs the network only when
    something has to be built.
    """
    places = _ensure(pins(kubernetes), say)
    go_mod = (PINS / kubernetes / "go.mod").read_text()
    return Tools(
        kubernetes=places[kubernetes],
        kubernetes_version=pinned_version(go_mod, "k8s.io/kubernetes"),
        etcd=places["etcd"],
        containerd=places["containerd"],
        runc=places["runc"],
        cni=places["cni"],
    )


def ensure_bench_programs(say: Say | None = None) -> Path:
    """Build what only the benchmarks need, as `ensure_tools` does; return where the programs are.

    They are our own and use the standard library alone.
    """
    return _ensure((BENCH,), say)[BENCH.folder]


def ensure_cdi_checker(say: Say | None = None) -> Path:
    """Build the program that judges CDI files by the Go library; return the program."""
    return _ensure((CDI,), say)[CDI.folder] / "cdicheck"


def ensure_oracles(say: Say | None = None) -> dict[str, Path]:
    """Build kube-scheduler's allocators, as `ensure_tools` does; return the programs by version.

    Versions are those of k8s.io/dynamic-resource-allocation, such as ``v0.37.1``.
    """
    module = "k8s.io/dynamic-resource-allocation"
    places = _ensure(ORACLES, say)
    return {
        pinned_version((PINS / folder / "go.mod").read_text(), module): binaries / "oracle"
        for folder, binaries in places.items()
    }


def _ensure(wanted: Sequence[Pin], say: Say | None) -> dict[str, Path]:
    tell = say if say is not None else _to_stderr
    cache = cache_root()
    todo = [pin for pin in wanted if not (destination(pin, cache) / "bin").is_dir()]
    if todo:
        with _lock(cache, tell):
            started = time.monotonic()
            for number, pin in enumerate(todo, start=1):
                if not (destination(pin, cache) / "bin").is_dir():
                    _build(pin, cache, f"[{number}/{len(todo)}] {pin.folder}", tell)
            tell(f"tools: all built in {time.monotonic() - started:.0f} s")
    return {pin.folder: destination(pin, cache) / "bin" for pin in wanted}


def _build(pin: Pin, cache: Path, title: str, say: Say) -> None:
    final = destination(pin, cache)
    go = golang.ensure_go(cache, say)
    environ = {
        **os.environ,
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "CGO_ENABLED": "1" if pin.cgo else "0",
        "GOWORK": "off",
        "GOGC": os.environ.get("GOGC", _garbage_percent(Path("/proc/meminfo").read_text())),
    }
    if pin.cgo:
        environ |= seccomp.build_environment(cache, say)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=final.parent) as scratch:
        binaries = Path(scratch, "bin")
        binaries.mkdir()
        argv = [str(go), "build", "-trimpath", "-ldflags", pin.ldflags, "-o", f"{binaries}/"]
        if pin.tags:
            argv += ["-tags", pin.tags]
        golang.run_long(
            [*argv, *pin.packages], cwd=PINS / pin.folder, env=environ, title=title, say=say
        )
        if pin.rename is not None:
            (binaries / pin.rename[0]).rename(binaries / pin.rename[1])
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        binaries.rename(final / "bin")


def _garbage_percent(meminfo: str) -> str:
    """Return how much garbage the compilers may leave: where memory is plenty, it saves time."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    plenty = found is not None and int(found.group(1)) >= _PLENTY_KIB
    return "400" if plenty else "100"


@contextmanager
def _lock(cache: Path, say: Say) -> Iterator[None]:
    folder = cache / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("tools: another process is building them; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
