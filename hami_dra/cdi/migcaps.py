"""The device nodes that let a container use one MIG instance.

Facts (NVIDIA MIG user guide, "Device nodes and capabilities"): the kernel module shows a file
``access`` for each instance below ``/proc/driver/nvidia/capabilities``; the node with the minor in
it, of the major that ``/proc/devices`` gives to "nvidia-caps", is the right to use the instance.
A GPU instance and its compute instance are needed both. The runtime makes the nodes in the
container from these numbers, so they need not exist on the host (CDI: a node with type and major
is not looked up).
"""

import re
from pathlib import Path
from typing import Final

from hami_dra.cdi.spec import DeviceNode
from hami_dra.contract.errors import RetryError

_DRIVER: Final = "nvidia-caps"
_MINOR: Final = re.compile(r"^DeviceFileMinor:\s*([0-9]+)\s*$", re.MULTILINE)


def find_capability_nodes(
    procfs: Path, card_minor: int, instance: int, part: int
) -> tuple[DeviceNode, DeviceNode]:
    """Return the nodes of a GPU instance and of a compute instance in it.

    Args:
        procfs: Where the kernel's /proc is.
        card_minor: N of the card's ``/dev/nvidiaN``.
        instance: NVML's id of the GPU instance.
        part: NVML's id of the compute instance.

    Raises:
        RetryError: The kernel does not show one of them; names the file.
    """
    major = _find_major(procfs)
    below = procfs / f"driver/nvidia/capabilities/gpu{card_minor}/mig/gi{instance}"
    return (
        _find_node(below / "access", major),
        _find_node(below / f"ci{part}" / "access", major),
    )


def _find_node(path: Path, major: int) -> DeviceNode:
    found = _MINOR.search(_read(path))
    if found is None:
        raise RetryError(f"{path} has no line DeviceFileMinor; is this NVIDIA's kernel module?")
    minor = int(found[1])
    node = f"/dev/nvidia-caps/nvidia-cap{minor}"
    return DeviceNode(host_path=node, container_path=node, major=major, minor=minor)


def _find_major(procfs: Path) -> int:
    path = procfs / "devices"
    for line in _read(path).splitlines():
        number, _, name = line.strip().partition(" ")
        if name.strip() == _DRIVER and number.isdigit():
            return int(number)
    raise RetryError(
        f"{path} has no driver {_DRIVER}; the NVIDIA kernel module that can divide cards is not "
        "loaded"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise RetryError(
            f"{path} cannot be read: {error.strerror or error}; the MIG instance is gone"
        ) from error
