"""The table: which programs are run, and what libvgpu may change of them (as a rule, nothing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hami_dra.contract.names import CONTAINER_LIBVGPU, CONTAINER_PRELOAD
from hami_dra.testing.simgpu import A100
from tests.userlands.container import PROGRAMS_DIR
from tests.userlands.injection import MEMORY_MIB

_P: Final = PROGRAMS_DIR
_WRONG_CLASS: Final = (
    f"ERROR: ld.so: object '{CONTAINER_LIBVGPU}' from {CONTAINER_PRELOAD} cannot be"
    " preloaded (wrong ELF class: ELFCLASS64): ignored.\n"
)
_LIBJEMALLOC: Final = ("LD_PRELOAD", "libjemalloc.so.2")
_GIT: Final = """
set -e; cd /tmp; git init -q work; cd work; git config user.name t; git config user.email t@t
echo text > file; git add file
GIT_COMMITTER_DATE='2026-01-01 00:00 +0000' GIT_AUTHOR_DATE='2026-01-01 00:00 +0000' \
  git commit -qm first
git clone -q . ../other; git -C ../other log --format='%H %s'; rm -r .git ../other
"""
_TAR: Final = """
set -e; cd /tmp; tar -cf - --mtime=@0 --sort=name --owner=0 --group=0 /usr/share/perl5 2>/dev/null |
  gzip -n | tee archive.gz | sha256sum; gzip -dc archive.gz | tar -tf - | wc -l
"""
_PACKAGE: Final = """
set -e; cd /tmp; mkdir -p t/DEBIAN t/opt
printf 'Package: tried\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n' \
  > t/DEBIAN/control
printf '#!/bin/sh\necho configured\n' > t/DEBIAN/postinst; chmod 755 t/DEBIAN/postinst
echo text > t/opt/tried; find t -exec touch -d @0 {} +
dpkg-deb -b t tried.deb > /dev/null; rm -r t
"""
_DPKG: Final = f"{_PACKAGE} dpkg -i tried.deb; cat /opt/tried; dpkg -P tried; rm tried.deb"
_APT: Final = (
    f"{_PACKAGE} apt-get install -qq -y ./tried.deb 2>&1 | sed 's/\\r/\\n/g' | tail -n 3;"
    " dpkg-query -W tried; apt-get purge -qq -y tried > /dev/null; rm tried.deb"
)
_BASH: Final = """
set -e -o pipefail
f() { local n=$1; [ "$n" -le 0 ] || { (f $((n - 1))); echo -n "$n "; }; }; f 20; echo
coproc cat; echo through >&"${COPROC[1]}"; read -r line <&"${COPROC[0]}"; echo "$line"
diff <(seq 5) <(seq 5) && printf '%s\\n' {a..e} | xargs -P 4 -n 1 true; trap 'echo left' EXIT
"""
_PERL: Final = """
use POSIX; my @r = map { my $p = open(my $h, "-|") // die; if (!$p) { print $_ ** 2; exit $_ }
my $t = <$h>; close $h; "$t:" . ($? >> 8) } 1 .. 5; print "@r ", POSIX::strtol("077", 8), "\n";
"""
_UNKILLED: Final = (
    "sleep 60 & kill -9 $!; wait $!; echo $?; setsid sleep 60 < /dev/null > /dev/null 2>&1 &"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One row.

    Attributes:
        name: As the table calls it.
        command: The program and its arguments.
        environment: What it is given beyond the usual.
        user: ``user:group``; else root.
        warning: What stderr begins each of its processes with, because of libvgpu.
        expected: What it must print with libvgpu; such a program is not compared with itself
            without the driver, where it could do nothing.
        held: What the table says of it.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    user: str | None = None
    warning: str = ""
    expected: str | None = None
    held: str = "held"

    @property
    def seen(self) -> str:
        """Return what the table says if all is well."""
        if self.expected is not None:
            return self.held
        return "the loader warns" if self.warning else "same"


def _shell(text: str) -> tuple[str, ...]:
    return ("bash", "-c", text)


COMPARED: Final = (
    Program(
        name="C: fork, vfork, posix_spawn, exec, closed descriptors, dlsym, signals",
        command=(f"{_P}/processes",),
    ),
    Program(
        name="the same, with LD_PRELOAD of a library that wraps malloc by RTLD_NEXT",
        command=(f"{_P}/processes",),
        environment=(("LD_PRELOAD", f"{_P}/libinterpose.so"),),
    ),
    Program(
        name="the same, with LD_PRELOAD of jemalloc",
        command=(f"{_P}/processes",),
        environment=(_LIBJEMALLOC,),
    ),
    Program(
        name="the same, with GCC's address sanitizer linked statically",
        command=(f"{_P}/processes-asan",),
        environment=(("ASAN_OPTIONS", "handle_segv=0:detect_leaks=0"),),
    ),
    Program(
        name="the same, with GCC's thread sanitizer linked statically",
        command=(f"{_P}/processes-tsan",),
        environment=(("TSAN_OPTIONS", "handle_segv=0"),),
    ),
    Program(
        name="the same, with LD_BIND_NOW",
        command=(f"{_P}/processes",),
        environment=(("LD_BIND_NOW", "1"),),
    ),
    Program(name="linked with jemalloc", command=(f"{_P}/jemalloc",)),
    Program(name="OpenMP", command=(f"{_P}/openmp",)),
    Program(name="Rust: threads and a process", command=(f"{_P}/spawn-rust",)),
    Program(name="Go without cgo: goroutines and a process", command=(f"{_P}/spawn-go",)),
    Program(
        name="Python: multiprocessing by fork, spawn and forkserver, threads, subprocess, ctypes",
        command=("python3", "-B", f"{_P}/processes.py"),
    ),
    Program(
        name="the same in Python, with LD_PRELOAD of jemalloc",
        command=("python3", "-B", f"{_P}/processes.py"),
        environment=(_LIBJEMALLOC,),
    ),
    Program(name="java -version", command=("java", "-version")),
    Program(
        name="Java: threads, a collection, a process",
        command=("java", "-Xmx256m", "-cp", _P, "Threads"),
    ),
    Program(name="Node.js: a worker and a process", command=("node", f"{_P}/spawn.js")),
    Program(name="Perl: processes by open", command=("perl", "-e", _PERL)),
    Program(name="bash: subshells, coprocess, substitution, trap", command=_shell(_BASH)),
    Program(name="git: commit and clone", command=_shell(_GIT)),
    Program(name="tar and gzip", command=_shell(_TAR)),
    Program(name="dpkg: install and purge", command=_shell(_DPKG)),
    Program(name="apt-get: install and purge", command=_shell(_APT)),
    Program(name="a process that is killed, and one that is left", command=("sh", "-c", _UNKILLED)),
    Program(
        name="a set-user-ID program of another user",
        command=(f"{_P}/setuid",),
        user="65534:65534",
        environment=(("LD_LIBRARY_PATH", "/nowhere"),),
    ),
    Program(
        name="passwd -S (set-user-ID) of another user", command=("passwd", "-S"), user="65534:65534"
    ),
    Program(name="sudo", command=("sudo", "-n", "-u", "nobody", "id")),
    Program(name="static, glibc", command=(f"{_P}/hello-static",)),
    Program(name="static, musl", command=(f"{_P}/hello-musl-static",)),
    Program(name="musl (Debian's loader)", command=(f"{_P}/hello-musl",)),
    Program(name="musl: processes, dlsym", command=(f"{_P}/processes-musl",)),
    Program(name="32 bits", command=(f"{_P}/hello-32",), warning=_WRONG_CLASS),
    Program(name="32 bits, static", command=(f"{_P}/hello-static-32",)),
)
"""These do not know of GPUs: with libvgpu they do what they do without."""

_FITS: Final = MEMORY_MIB * 2 // 3
_REST: Final = MEMORY_MIB - _FITS
_CUPROBE: Final = (
    f"GPU 0: {A100.name}  {A100.uuid}  total {MEMORY_MIB} MiB by CUDA, {MEMORY_MIB} MiB by NVML\n"
)
_TAKEN: Final = f"total {MEMORY_MIB}, {_FITS} MiB: 0\n"
HELD: Final = (
    Program(
        name="CUDA and NVML, linked", command=(f"{_P}/probe/cuprobe", "devices"), expected=_CUPROBE
    ),
    Program(
        name="CUDA and NVML by dlopen and cuGetProcAddress",
        command=(f"{_P}/probe/cuprobe-dl", "devices"),
        expected=_CUPROBE,
    ),
    Program(
        name="CUDA in Python by ctypes: a forked child and its parent each take memory",
        command=("python3", "-B", f"{_P}/gpu.py", str(_FITS), str(_REST)),
        expected=f"{_TAKEN}{_TAKEN}total {MEMORY_MIB}, {_REST} MiB: 0\n"
        f"total {MEMORY_MIB}, 1 MiB: 2\n",
    ),
    Program(
        name="the same in Python, as another user",
        user="65534:65534",
        command=("python3", "-B", f"{_P}/gpu.py", str(_FITS), str(_REST)),
        expected=f"{_TAKEN}{_TAKEN}total {MEMORY_MIB}, {_REST} MiB: 0\n"
        f"total {MEMORY_MIB}, 1 MiB: 2\n",
    ),
    Program(
        name="musl with LD_PRELOAD of libvgpu, which nothing of ours sets",
        command=("sh", "-c", f"LD_PRELOAD={CONTAINER_LIBVGPU} {_P}/hello-musl 2>&1; echo $?"),
        expected=(
            f"Error relocating {CONTAINER_LIBVGPU}: __register_atfork: symbol not found\n127\n"
        ),
        held="does not start",
    ),
)
"""These are not compared: they use the card and are held to the share, or cannot start."""
