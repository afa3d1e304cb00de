"""What runs in all userlands, compiled in the oldest of them; libvgpu is as it is shipped."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

from tests.cluster import golang
from tests.cluster.toolchain import cache_root
from tests.userlands.container import PROGRAMS_DIR, run_program
from tests.userlands.injection import BindMount, Injection
from tests.userlands.roots import UserlandError

REPOSITORY: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = Path(__file__).resolve().parent / "sources"
_OUT: Final = "/out"
_CC: Final = "gcc -std=gnu11 -O1 -g -D_GNU_SOURCE -Wall -Werror"
_PROGRAMS: Final = (
    f"{_CC} -o processes $S/processes.c -ldl -pthread",
    f"{_CC} -fopenmp -o openmp $S/openmp.c",
    f"{_CC} -o jemalloc $S/jemalloc.c -ljemalloc -pthread",
    f"{_CC} -fno-builtin-malloc -shared -fPIC -o libinterpose.so $S/interpose.c -ldl",
    f"{_CC} -o setuid $S/setuid.c && chmod 4755 setuid",
    f"{_CC} -static -o hello-static $S/hello.c",
    f"{_CC} -m32 -o hello-32 $S/hello.c",
    f"{_CC} -static -m32 -o hello-static-32 $S/hello.c",
    f"{_CC} -fsanitize=address -static-libasan -o processes-asan $S/processes.c -ldl -pthread",
    f"{_CC} -fsanitize=thread -static-libtsan -o processes-tsan $S/processes.c -ldl -pthread",
    "musl-gcc -O1 -o hello-musl $S/hello.c",
    "musl-gcc -O1 -static -o hello-musl-static $S/hello.c",
    "musl-gcc -O1 -o processes-musl $S/processes.c",
    "rustc -O -o spawn-rust $S/spawn.rs",
    "javac -d . $S/Threads.java",
    "cp $S/*.py $S/*.js .",
)


def build_programs(root: Path, native: Path, out: Path) -> None:
    """Compile the programs and the simulated driver.

    Args:
        root: Of the oldest userland, with compilers.
        native: Meson's build of libvgpu; says which files the driver is made of.
        out: An empty directory. Gets the programs, and ``sim/`` and ``probe/`` as Meson lays them.

    Raises:
        UserlandError: Something does not compile.
    """
    for folder in ("sim", "probe"):
        (out / folder).mkdir()
    commands = [*_PROGRAMS, *_driver_commands(native)]
    script = "\n".join(["set -e", f"cd {_OUT}", f"S={PROGRAMS_DIR}", *commands])
    mounts = (
        BindMount(out, _OUT, read_only=False),
        BindMount(REPOSITORY, str(REPOSITORY), read_only=True),
        BindMount(native, str(native), read_only=True),
    )
    done = run_program(root, SOURCES, Injection(mounts), ["sh", "-c", script])
    if done.status:
        raise UserlandError(f"the programs do not compile:\n{done.stdout}{done.stderr}")
    _build_go(out)


def _driver_commands(native: Path) -> list[str]:
    """Return commands for the simulated driver, from what Meson knows of its targets."""
    targets = json.loads((native / "meson-info/intro-targets.json").read_text())
    files = {
        target["name"]: [
            source
            for group in target["target_sources"]
            for source in (*group.get("sources", ()), *group.get("generated_sources", ()))
            if source.endswith(".c")
        ]
        for target in targets
    }
    sources = {name: shlex.join(dict.fromkeys(found)) for name, found in files.items()}
    includes = shlex.join(
        f"-I{REPOSITORY / 'libvgpu' / folder}" for folder in ("include", "api", "sim", "probe")
    )
    compiler = f"gcc -std=gnu11 -O1 -D_GNU_SOURCE -fno-strict-aliasing {includes}"
    shared = f"{compiler} -fPIC -fvisibility=hidden -shared -pthread -Wl,-Bsymbolic-functions"
    drivers = ("libcuda.so.1", "libnvidia-ml.so.1")
    linked = " ".join(f"-l:{soname}" for soname in drivers)
    return [
        *(
            f"{shared} -Wl,-soname,{soname} -o sim/{soname} {sources[target]}"
            for soname, target in zip(drivers, ("cuda", "nvidia-ml"), strict=True)
        ),
        f"{compiler} -o probe/cuprobe {sources['cuprobe']} -Lsim {linked}",
        f"{compiler} -DVGPU_PROBE_DL -o probe/cuprobe-dl {sources['cuprobe-dl']} -ldl",
    ]


def _build_go(out: Path) -> None:
    go = golang.ensure_go(cache_root(), print)
    environment = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    command = [str(go), "build", "-o", str(out / "spawn-go"), str(SOURCES / "spawn.go")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UserlandError(f"the program in Go does not compile:\n{done.stderr}")
