"""Clients too heavy for the development environment: ``python -m tests.userlands.clients``.

They run on this machine, in a virtual environment of the cache, on the simulated driver with
libvgpu and a share. What needs the CUDA runtime (CuPy, PyTorch) is not among them: the runtime asks
the driver for private tables (cuGetExportTable), which nobody but NVIDIA can describe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra.testing.simgpu import A100
from tests.cluster.toolchain import cache_root
from tests.gpu.bed import simulate
from tests.gpu.setups import Limits, list_setups
from tests.userlands.builds import REPOSITORY, SOURCES
from tests.userlands.roots import UserlandError

SHARE_MIB: Final = 3000
_PACKAGES: Final = (
    "cuda-bindings==13.5.0",
    "cuda-core==1.2.2",
    "cuda-pathfinder==1.9.0",
    "llvmlite==0.50.0",
    "numba==0.68.1",
    "numba-cuda==0.30.4",
    "numpy==2.4.6",
    "nvidia-cuda-nvrtc-cu12==12.9.86",
    "nvidia-cuda-runtime-cu12==12.9.79",  # numba-cuda reads its version
    "packaging==26.3",
)
_TIMEOUT_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Client:
    """A script below ``sources/`` and what it must print."""

    name: str
    script: str
    expected: str


CLIENTS: Final = (
    Client(
        "numba-cuda 0.30.4",
        "numba_client.py",
        f"total {SHARE_MIB} MiB\ncopied [0, 1, 2, 3]\nrefused CUDA_ERROR_OUT_OF_MEMORY\n"
        f"free {SHARE_MIB} MiB\n",
    ),
    Client(
        "cuda.core 1.2.2",
        "core_client.py",
        # Its pool keeps what is given back.
        f"{A100.name}\nfree {SHARE_MIB - 1024} MiB\nrefused CUDA_ERROR_OUT_OF_MEMORY\n"
        f"free {SHARE_MIB - 1024} MiB\n",
    ),
)


def main() -> int:
    """Run the clients and print a line for each. 1 where one is not held, 2 if it cannot."""
    build = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu")).resolve()
    try:
        python = ensure_clients()
    except UserlandError as error:
        print(f"userlands: {error}", file=sys.stderr)
        return 2
    wrong = 0
    with simulate(build) as extra, tempfile.TemporaryDirectory(prefix="hami-dra-clients-") as text:
        ours = list_setups(build, None, extra)[1]
        for client in CLIENTS:
            environment = ours.environment(
                Limits(A100.uuid, memory_mib=SHARE_MIB), Path(text, client.script)
            )
            del environment["PYTHONPATH"]  # its own packages, not ours
            done = subprocess.run(
                [python, SOURCES / client.script],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_SECONDS,
            )
            held = done.returncode == 0 and done.stdout == client.expected
            wrong += not held
            print(f"{client.name}: {'held' if held else done.stdout + done.stderr}", flush=True)
    return int(wrong > 0)


def ensure_clients() -> Path:
    """Return the Python of an environment that has the clients; make it if it is not there.

    Needs the network only to make it.

    Raises:
        UserlandError: pip cannot install them.
    """
    text = f"{_PACKAGES} {sys.version_info[:2]} {os.uname().machine}"
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = cache_root() / "userlands" / f"clients-{key}"
    python, made = folder / "bin/python", folder / ".made"
    if made.exists():
        return python
    print("userlands: the clients' environment (a minute)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", *_PACKAGES],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise UserlandError(f"pip cannot install the clients:\n{done.stderr}")
    made.touch()
    return python


if __name__ == "__main__":
    sys.exit(main())
