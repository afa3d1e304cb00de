"""Driver installations as distributions lay them out, made of empty files."""

from __future__ import annotations

import os
import platform
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = "580.95.05"
MACHINE = platform.machine()
_E_MACHINE = {"x86_64": 62, "aarch64": 183}[MACHINE]
LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[MACHINE]

VERSIONED = (
    *("libcuda", "libcudadebugger", "libnvcuvid", "libnvidia-cfg", "libnvidia-encode"),
    *("libnvidia-ml", "libnvidia-opticalflow", "libnvidia-ptxjitcompiler"),
)
"""With a SONAME link ``.so.1``."""
COMPUTE_ONLY_VERSION = ("libnvidia-gpucomp", "libnvidia-nvvm70", "libnvidia-pkcs11-openssl3")
"""Whose SONAME is the versioned name, or that nobody links to."""
GRAPHICS = ("libnvidia-glcore", "libnvidia-glsi", "libnvidia-glvkspirv", "libnvidia-rtcore")
GLVND = ("libEGL_nvidia", "libGLX_nvidia")
"""With a SONAME link ``.so.0``."""


def make_elf(*, machine: int = _E_MACHINE, bits: int = 64, interpreter: str = "") -> bytes:
    """Return the headers of an ELF file, and no code."""
    raw = interpreter.encode() + b"\0" if interpreter else b""
    ident = struct.pack("<4sBB10x", b"\x7fELF", 2 if bits == 64 else 1, 1)
    entries = 1 if interpreter else 0
    header = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, entries, 0, 0, 0)
    program = struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(raw), len(raw), 1) if raw else b""
    return ident + header + program + raw


ELF_LIBRARY = make_elf()
ELF_PROGRAM = make_elf(interpreter=LOADER)


def put(path: Path, content: bytes = ELF_LIBRARY) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def link(path: Path, target: str) -> None:
    """Make a link, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def put_library(directory: Path, stem: str, *links: str, version: str = VERSION) -> None:
    """Write ``stem.so.version`` and links to it by suffix, such as ``.so.1``."""
    put(directory / f"{stem}.so.{version}")
    for suffix in links:
        link(directory / f"{stem}{suffix}", f"{stem}.so.{version}")


def put_nodes(dev: Path, *names: str) -> None:
    """Make something that is a character device without being root: a link to /dev/null."""
    for name in names:
        link(dev / name, "/dev/null")


def put_compute(directory: Path, version: str = VERSION) -> None:
    """Write the libraries of a headless installation."""
    for stem in VERSIONED:
        put_library(directory, stem, ".so.1", version=version)
    link(directory / "libcuda.so", "libcuda.so.1")
    put_library(directory, "libnvidia-nvvm", ".so.4", version=version)
    for stem in COMPUTE_ONLY_VERSION:
        put_library(directory, stem, version=version)


def put_graphics(directory: Path, version: str = VERSION) -> None:
    """Write the libraries of a desktop installation beside those of a headless one."""
    for stem in GRAPHICS:
        put_library(directory, stem, version=version)
    for stem in GLVND:
        put_library(directory, stem, ".so.0", version=version)
    put_library(directory, "libnvidia-allocator", ".so.1", version=version)
    put_library(directory, "libnvoptix", ".so.1", version=version)
    put_library(directory / "vdpau", "libvdpau_nvidia", ".so.1", version=version)
    put_library(directory, "libnvidia-egl-gbm", ".so.1", version="1.1.2")
    # Not the driver's, though they lie beside it.
    put_library(directory, "libEGL", ".so.1", version="1.1.0")
    put_library(directory, "libnvinfer", ".so.10", version="10.3.0")
    put_library(directory, "libnvidia-container", ".so.1", version="1.18.0")
    put_library(directory, "libc", version="6")


def put_programs(directory: Path, *names: str) -> None:
    """Write dynamic programs."""
    for name in names or ("nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control"):
        put(directory / name, ELF_PROGRAM).chmod(0o755)


def put_configs(root: Path, *parts: str) -> None:
    """Write text files."""
    for part in parts:
        put(root / part, b"{}")


def put_socket(path: Path) -> None:
    """Make a unix socket that nobody listens on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # the kernel allows 107 bytes of a path, pytest's folders are longer
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def debian(root: Path) -> None:
    """NVIDIA's own packages for Ubuntu and Debian, with everything."""
    directory = root / f"usr/lib/{MACHINE}-linux-gnu"
    put_compute(directory)
    put_graphics(directory)
    put(root / "usr/lib/i386-linux-gnu/libcuda.so.580.95.05", make_elf(bits=32))
    put_programs(root / "usr/bin", "nvidia-smi", "nvidia-persistenced", "nvidia-modprobe")
    put_socket(root / "run/nvidia-persistenced/socket")
    put_configs(
        root,
        "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        "usr/share/glvnd/egl_vendor.d/50_mesa.json",
        "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
        "usr/share/vulkan/icd.d/nvidia_icd.json",
        "usr/share/vulkan/icd.d/intel_icd.x86_64.json",
        "usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
        "usr/share/nvidia/nvoptix.bin",
        "etc/OpenCL/vendors/nvidia.icd",
    )
    put(directory / "nvidia/xorg/nvidia_drv.so")
    put_library(directory / "nvidia/xorg", "libglxserver_nvidia")
    put_configs(root, f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin")
    put_configs(root, f"lib/firmware/nvidia/{VERSION}/gsp_tu10x.bin")
    put_configs(root, "lib/firmware/nvidia/570.1/gsp_ga10x.bin")


def debian_alternatives(root: Path) -> None:
    """Debian's own packages: below nvidia/current, reached through /etc/alternatives."""
    directory = root / f"usr/lib/{MACHINE}-linux-gnu"
    put_compute(directory / "nvidia/current")
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        link(directory / name, f"/etc/alternatives/glx--{name}")
        link(root / f"etc/alternatives/glx--{name}", f"{directory_of(root, directory)}/{name}")
    put_library(directory, "libnvidia-glcore")
    put_programs(root / "usr/lib/nvidia/current", "nvidia-smi")
    link(root / "usr/bin/nvidia-smi", "/etc/alternatives/nvidia--nvidia-smi")
    link(root / "etc/alternatives/nvidia--nvidia-smi", "/usr/lib/nvidia/current/nvidia-smi")


def directory_of(root: Path, directory: Path) -> str:
    """Return a directory's nvidia/current as programs below the root name it."""
    return f"/{directory.relative_to(root)}/nvidia/current"


def fedora(root: Path) -> None:
    """RPM packages: 64 bits in lib64, 32 in lib, /lib and /bin are links into /usr."""
    put_compute(root / "usr/lib64")
    put(root / "usr/lib/libcuda.so.580.95.05", make_elf(bits=32, machine=3))
    link(root / "usr/lib/libcuda.so.1", "libcuda.so.580.95.05")
    put(root / "usr/lib/libnvidia-glcore.so.580.95.05", make_elf(bits=32, machine=3))
    for name in ("lib", "lib64", "bin", "sbin"):
        link(root / name, f"usr/{name}")
    put_programs(root / "usr/bin", "nvidia-smi", "nvidia-debugdump")
    put_configs(root, f"usr/share/vulkan/icd.d/nvidia_icd.{MACHINE}.json")
    put_configs(root, "usr/share/glvnd/egl_vendor.d/10_nvidia.json")
    put_configs(root, f"usr/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin")
    put_library(root / "usr/lib64/xorg/modules/extensions", "libglxserver_nvidia")


def driver_container(root: Path) -> None:
    """The GPU operator's driver container: an Ubuntu root with the host's /dev in it."""
    put_compute(root / f"usr/lib/{MACHINE}-linux-gnu")
    put_programs(root / "usr/bin")
    put_nodes(root / "dev", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0")
    put_socket(root / "run/nvidia-persistenced/socket")
    put_socket(root / "run/nvidia-fabricmanager/socket")
    link(root / "var/run", "/run")
    put_configs(root, f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin")


def nixos(root: Path) -> None:
    """NixOS: /run/opengl-driver is a link into the store, and so is everything in it."""
    package = root / "nix/store/aaaa-nvidia-x11-580.95.05"
    put_compute(package / "lib")
    driver = root / "nix/store/bbbb-graphics-drivers"
    for entry in sorted((package / "lib").iterdir()):
        link(driver / "lib" / entry.name, f"/nix/store/{package.name}/lib/{entry.name}")
    put_configs(driver, "share/vulkan/icd.d/nvidia_icd.x86_64.json")
    link(root / "run/opengl-driver", f"/nix/store/{driver.name}")
    tools = root / "nix/store/cccc-nvidia-x11-bin/bin"
    foreign = make_elf(interpreter="/nix/store/dddd-glibc/lib/ld-linux.so.2")
    put(tools / "nvidia-smi", foreign).chmod(0o755)
    link(root / "run/current-system/sw", "/nix/store/cccc-nvidia-x11-bin")


def cos(root: Path) -> None:
    """Google's COS: an installer's own directory, with neither /dev nor /etc."""
    put_compute(root / "lib64")
    put_programs(root / "bin", "nvidia-smi", "nvidia-debugdump")
    put_configs(root, "vulkan/icd.d/nvidia_icd.json")


def bottlerocket(root: Path) -> None:
    """Bottlerocket: /usr is a link into the system root."""
    system = root / f"{MACHINE}-bottlerocket-linux-gnu/sys-root/usr"
    put_compute(system / "lib/nvidia/tesla")
    put_programs(system / "bin", "nvidia-smi")
    link(system / "libexec/nvidia/tesla/bin/nvidia-smi", "../../../../bin/nvidia-smi")
    put_configs(system, f"lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin")
    for name, target in (("usr", str(system.relative_to(root))), ("lib", "usr/lib")):
        link(root / name, target)


def talos(root: Path) -> None:
    """Talos: the driver's glibc world below /usr/local/glibc."""
    put_compute(root / "usr/local/glibc/usr/lib")
    put_programs(root / "usr/local/bin", "nvidia-smi")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "debian": debian,
    "debian-alternatives": debian_alternatives,
    "fedora": fedora,
    "driver-container": driver_container,
    "nixos": nixos,
    "cos": cos,
    "bottlerocket": bottlerocket,
    "talos": talos,
}
