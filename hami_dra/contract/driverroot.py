"""Where installations keep the parts of NVIDIA's driver, relative to the driver's root."""

from typing import Final

NVML_SONAME: Final = "libnvidia-ml.so.1"
CUDA_SONAME: Final = "libcuda.so.1"

BINARY_DIRECTORIES: Final = (
    "usr/bin",
    "usr/sbin",
    "bin",  # also Google's COS, whose installer has a root of its own
    "sbin",
    "usr/lib/nvidia/current",  # Debian's packages, where no alternative is chosen
    "usr/local/bin",  # Talos
    "usr/libexec/nvidia/tesla/bin",  # Bottlerocket
    "run/current-system/sw/bin",  # NixOS
)
CONFIG_DIRECTORIES: Final = (
    "etc",
    "usr/local/share",
    "usr/share",
    "run/opengl-driver/share",  # NixOS
    "",  # COS: vulkan/icd.d lies in the root itself
)
FIRMWARE_DIRECTORIES: Final = ("lib/firmware/updates", "lib/firmware", "usr/lib/firmware")


def library_directories(machine: str) -> tuple[str, ...]:
    """Return the library directories to search, in order.

    Those of 64 bits come before plain ``lib``, which holds 32-bit libraries on Fedora and its kin.

    Args:
        machine: ``uname -m``, such as ``x86_64``.
    """
    return (
        f"usr/lib/{machine}-linux-gnu",  # Debian and Ubuntu; the GPU operator's driver container
        f"usr/lib/{machine}-linux-gnu/nvidia/current",  # Debian's own packages
        "usr/lib64",  # Fedora and its kin, SUSE, Amazon Linux
        "usr/lib/nvidia/tesla",  # Bottlerocket
        "usr/local/glibc/usr/lib",  # Talos, whose own libc is musl
        "run/opengl-driver/lib",  # NixOS
        "usr/lib",  # Arch
        f"lib/{machine}-linux-gnu",
        "lib64",  # COS
        "lib",
    )
