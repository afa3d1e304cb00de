"""Where distributions keep the parts of NVIDIA's driver, relative to the driver's root."""

from typing import Final

NVML_SONAME: Final = "libnvidia-ml.so.1"
CUDA_SONAME: Final = "libcuda.so.1"


def library_directories(machine: str) -> tuple[str, ...]:
    """Return the library directories to search, in order.

    Debian and Ubuntu (multiarch), Debian's own packages (``nvidia/current``), Fedora and its kin
    (``lib64``), driver containers and hand-made roots (plain ``lib``).

    Args:
        machine: ``uname -m``, such as ``x86_64``.
    """
    return (
        f"usr/lib/{machine}-linux-gnu",
        f"usr/lib/{machine}-linux-gnu/nvidia/current",
        "usr/lib64",
        "usr/lib",
        f"lib/{machine}-linux-gnu",
        "lib64",
        "lib",
    )
