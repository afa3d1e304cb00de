"""libseccomp for building runc: from the system if it is there, else unpacked without installing.

The kubelet asks for the default seccomp profile for every pod sandbox, so a runc without seccomp
would start no pod at all. The library is linked statically: runc then runs where it is not
installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.errors import ToolchainError

ADVICE = "install libseccomp's headers and static library (Debian: apt-get install libseccomp-dev)"
PROBE = "#include <seccomp.h>\nint main(void) { return seccomp_api_get() == 0; }\n"

Say = Callable[[str], None]


def compiler() -> str | None:
    """Return the C compiler's name, if there is one on PATH."""
    wanted = os.environ.get("CC")
    return next((cc for cc in (wanted, "cc", "gcc", "clang") if cc and shutil.which(cc)), None)


def build_environment(cache: Path, say: Say) -> dict[str, str]:
    """Return the environment variables with which cgo finds libseccomp.

    The answer is a stand-in for pkg-config, so pkg-config itself is not needed.

    Raises:
        ToolchainError: there are no headers, and this system cannot unpack Debian packages.
    """
    cc = compiler()
    if cc is None:
        raise ToolchainError("no C compiler on PATH (install gcc)")
    for libs in ("-l:libseccomp.a", "-lseccomp"):
        if _links(cc, "", libs):
            return {"CC": cc, "PKG_CONFIG": str(_stand_in(cache, "", libs))}
    root = _unpacked(cache, say)
    header = next(root.glob("usr/include/seccomp.h"), None)
    library = next(root.glob("usr/lib/**/libseccomp.a"), None)
    if header is None or library is None:
        raise ToolchainError(f"Debian's libseccomp-dev has not the files runc needs; {ADVICE}")
    cflags, libs = f"-I{header.parent}", str(library)
    if not _links(cc, cflags, libs):
        raise ToolchainError(f"the unpacked libseccomp cannot be linked; {ADVICE}")
    return {"CC": cc, "PKG_CONFIG": str(_stand_in(cache, cflags, libs))}


def obtainable() -> bool:
    """Return whether ``build_environment`` can be expected to succeed."""
    cc = compiler()
    if cc is None:
        return False
    if any(_links(cc, "", libs) for libs in ("-l:libseccomp.a", "-lseccomp")):
        return True
    return all(shutil.which(program) for program in ("apt-get", "dpkg-deb"))


def _links(cc: str, cflags: str, libs: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="hdc-probe-") as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE)
        argv = [cc, *cflags.split(), str(source), "-o", f"{folder}/probe", *libs.split()]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _stand_in(cache: Path, cflags: str, libs: str) -> Path:
    script = cache / "seccomp" / "pkg-config"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        "#!/bin/sh\n# Answers for libseccomp, the only package that is asked for.\n"
        f'case "$*" in\n*--cflags*) echo "{cflags}" ;;\n*--libs*) echo "{libs}" ;;\n'
        "*--version*) echo 1.8.0 ;;\nesac\n"
    )
    script.chmod(0o755)
    return script


def _unpacked(cache: Path, say: Say) -> Path:
    root = cache / "seccomp" / "root"
    if (root / "usr").is_dir():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ToolchainError(f"runc needs libseccomp; {ADVICE}")
    say("runc: libseccomp's headers are not installed; unpacking Debian's package in the cache")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".apt-", dir=root.parent) as scratch:
        Path(scratch).chmod(0o755)
        if not _download(scratch, {}):
            lists = Path(scratch, "lists")
            lists.mkdir()
            options = {"Dir::State::lists": str(lists)}
            _apt(scratch, options, "update")
            if not _download(scratch, options):
                raise ToolchainError(f"apt-get cannot download libseccomp-dev; {ADVICE}")
        target = Path(scratch, "root")
        for package in sorted(Path(scratch).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(target)], check=True)
        target.rename(root)
    return root


def _download(folder: str, options: Mapping[str, str]) -> bool:
    return _apt(folder, options, "download", "libseccomp-dev") and bool(
        list(Path(folder).glob("libseccomp-dev_*.deb"))
    )


def _apt(folder: str, options: Mapping[str, str], *arguments: str) -> bool:
    argv = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    done = subprocess.run(
        [*argv, *arguments], cwd=folder, capture_output=True, check=False, timeout=300
    )
    return done.returncode == 0
