"""Device nodes of the driver, with the numbers that the host's nodes have.

Nodes are never made here. Who makes them (udev rules, nvidia-persistenced, nvidia-modprobe) also
loads the modules behind them, and a process that can make any device node can read any disk.
"""

import os
import stat
from pathlib import Path
from typing import Final

from hami_dra.cdi.driverroot import DriverRoot
from hami_dra.cdi.spec import DeviceNode, Edits
from hami_dra.contract.errors import RetryError

_NEEDED: Final = ("nvidiactl", "nvidia-uvm")
"""Without the second, cuInit fails in the container with "unknown error"."""
_WELCOME: Final = ("nvidia-uvm-tools", "nvidia-modeset")


def find_control_nodes(root: DriverRoot) -> tuple[DeviceNode, ...]:
    """Return the nodes that every card needs.

    Not among them, because they reach beyond one container: nvidia-nvswitch and nvidia-nvlink
    (the fabric), nvidia-caps-imex-channels (memory of other nodes), nvidia-fs and gdrdrv.

    Raises:
        RetryError: One is not there, with the command that makes it.
    """
    found = [(name, find_node(root, name)) for name in (*_NEEDED, *_WELCOME)]
    lacking = [name for name, node in found if node is None and name in _NEEDED]
    if lacking:
        raise RetryError(
            f"{_describe_places(root, lacking[0])} is not a character device; run "
            "`nvidia-modprobe -u -c 0` on the node, which loads the modules and makes the nodes"
        )
    return tuple(node for _, node in found if node is not None)


def find_card_edits(root: DriverRoot, minor: int, pci_bus_id: str | None = None) -> Edits:
    """Return what one card needs: its device node, and its nodes for graphics where it has some.

    Args:
        root: The driver's.
        minor: N of /dev/nvidiaN.
        pci_bus_id: ``dddd:bb:dd.f``; without, no graphics.

    Raises:
        RetryError: There is no such character device.
    """
    node = find_node(root, f"nvidia{minor}")
    if node is None:
        raise RetryError(
            f"{_describe_places(root, f'nvidia{minor}')} is not a character device; run "
            f"`nvidia-modprobe -c {minor}` on the node, which loads the module and makes it"
        )
    names = _list_drm(root.sysfs, pci_bus_id) if pci_bus_id else []
    drm = (find_node(root, f"dri/{name}") for name in names)
    return Edits(nodes=(node, *(found for found in drm if found is not None)))


def find_node(root: DriverRoot, name: str) -> DeviceNode | None:
    """Return a character device: from the root's own /dev, else from the host's.

    The GPU operator's driver container has the nodes in its root, Google's COS does not.
    """
    # On strings: every card is looked for every few seconds.
    for local, host in (_join(root.local, root.host), (f"{root.devices}", "/dev")):
        node = read_node(f"{local}/{name}", f"{host}/{name}", f"/dev/{name}")
        if node is not None:
            return node
    return None


def _join(local: Path, host: Path) -> tuple[str, str]:
    """Return the two names of a root's own /dev."""
    return f"{str(local).rstrip('/')}/dev", f"{str(host).rstrip('/')}/dev"


def read_node(local: str | Path, host_path: str, container_path: str) -> DeviceNode | None:
    """Return a character device with the numbers that it has; ``None`` if it is something else."""
    try:
        status = os.stat(local)  # noqa: PTH116 - see `find_node`
    except OSError:
        return None
    if not stat.S_ISCHR(status.st_mode):
        return None
    return DeviceNode(
        host_path=host_path,
        container_path=container_path,
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
    )


def _list_drm(sysfs: Path, pci_bus_id: str) -> list[str]:
    """Return ``card1`` and ``renderD128`` of a card, if its modeset driver is loaded."""
    try:
        names = sorted(os.listdir(f"{sysfs}/bus/pci/devices/{pci_bus_id}/drm"))  # noqa: PTH208
    except OSError:
        return []
    return [name for name in names if name.startswith(("card", "renderD")) and name[-1].isdigit()]


def _describe_places(root: DriverRoot, name: str) -> str:
    own = root.local / "dev" / name
    other = root.devices / name
    return str(own) if own == other else f"{own} (or {other})"
