"""The CDI file of one claim: what its containers get besides the card itself.

Everything is an edit of a device, nothing of the whole file: a container that uses only the
claim's request with admin access gets neither a grant nor libvgpu. Mounts that several devices
share are equal, so the runtime makes each once.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hami_dra.cdi.migcaps import find_capability_nodes
from hami_dra.cdi.nodes import read_node
from hami_dra.cdi.spec import DeviceNode, Edits, Mount, render_spec
from hami_dra.contract import names
from hami_dra.node.ledger import ClaimRecord
from hami_dra.node.settings import InjectPath
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.policy.binding import Binding, BoundDevice

FILE_PREFIX: Final = f"{names.DRIVER_NAME}-"
CLAIM_PREFIX: Final = f"{FILE_PREFIX}{names.CDI_CLASS_CLAIM}-"

_SHORT: Final = 8
_NO_VENDOR_INJECTION: Final = (("NVIDIA_VISIBLE_DEVICES", "void"),)
"""A node whose default runtime is NVIDIA's would inject cards a second time, from the image's
own environment; "void" tells it not to."""


def name_file(claim_uid: str) -> str:
    """Return the name of a claim's CDI file, without suffix."""
    return f"{CLAIM_PREFIX}{claim_uid}"


def name_devices(binding: Binding) -> list[str]:
    """Return a CDI device name for each result: ``<claim UID>-<8 hex>``, unique in the claim.

    Unique per result, because the kubelet tells devices apart by their first CDI id, and two
    shares of one card may be in one claim.
    """
    keys = [_identify(device) for device in binding.devices]
    short = [key[:_SHORT] for key in keys]
    unique = short if len(set(short)) == len(short) else keys
    return [f"{binding.claim_uid}-{key}" for key in unique]


def render_claim(
    record: ClaimRecord,
    directories: ShareDirectories,
    *,
    preload: Path,
    inject_paths: Sequence[InjectPath],
    procfs: Path = Path("/proc"),
) -> tuple[dict[str, Any], list[str]]:
    """Return a claim's CDI specification and the host paths that it refers to.

    Raises:
        RetryError: A MIG instance of the claim does not exist.
    """
    nodes, injected = _inject(inject_paths)
    library = (
        Mount(record.library, names.CONTAINER_LIBVGPU),
        Mount(str(preload), names.CONTAINER_PRELOAD),
    )
    devices = [
        (
            name,
            Edits(
                mounts=(
                    *injected,
                    *(library if device.controlled else ()),
                    *(
                        _mount_share(record.binding, device, directories)
                        if device.controlled
                        else ()
                    ),
                    *_mount_service(device),
                ),
                nodes=(*nodes, *_find_nodes(device, procfs)),
                environment=(*_NO_VENDOR_INJECTION, *_serve(record.binding, device)),
            ),
        )
        for name, device in zip(name_devices(record.binding), record.binding.devices, strict=True)
    ]
    # Without the nodes of MIG instances: the runtime makes those by number, whether the host has
    # them or not.
    paths = dict.fromkeys(
        [node.host_path for node in nodes]
        + [mount.host_path for _, edits in devices for mount in edits.mounts]
    )
    return render_spec(names.CDI_KIND_CLAIM, devices), list(paths)


def _inject(paths: Sequence[InjectPath]) -> tuple[tuple[DeviceNode, ...], tuple[Mount, ...]]:
    """Return device nodes and mounts: a node that is merely mounted cannot be opened."""
    nodes, mounts = [], []
    for path in paths:
        node = read_node(path.host, str(path.host), path.container)
        if node is not None:
            nodes.append(node)
        else:
            mounts.append(Mount(str(path.host), path.container, read_only=path.read_only))
    return tuple(nodes), tuple(mounts)


def _serve(binding: Binding, device: BoundDevice) -> tuple[tuple[str, str], ...]:
    """Return what makes programs clients of the node's MPS daemon.

    A process has one percentage for all cards. The largest of the claim's is equal on all of them,
    so that containers get it whichever device comes last; libvgpu holds the others to the rest.
    """
    if device.mps is None:
        return ()
    pipes = ("CUDA_MPS_PIPE_DIRECTORY", names.CONTAINER_MPS_PIPES)
    percent = max(each.thread_percent for each in binding.devices if each.mps is not None)
    return (pipes, ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", str(percent)))


def _mount_service(device: BoundDevice) -> tuple[Mount, ...]:
    if device.mps is None:
        return ()
    # Clients make files of their own in both.
    shared = Mount(device.mps.pipe_directory, names.CONTAINER_MPS_PIPES, read_only=False)
    if not device.mps.shm_directory:
        return (shared,)
    return shared, Mount(device.mps.shm_directory, names.CONTAINER_SHM, read_only=False)


def _find_nodes(device: BoundDevice, procfs: Path) -> tuple[DeviceNode, ...]:
    part = device.mig
    if part is None or part.instance is None or part.part is None:
        return ()
    return find_capability_nodes(procfs, device.minor, part.instance, part.part)


def _mount_share(
    binding: Binding, device: BoundDevice, directories: ShareDirectories
) -> tuple[Mount, Mount]:
    uid = binding.claim_uid
    inside = f"{names.CONTAINER_GRANTS_DIR}/{uid}_{device.request}"
    return (
        Mount(str(directories.grant_path(uid, device.request)), f"{inside}/{names.GRANT_FILE}"),
        Mount(
            str(directories.region_path(uid, device.request)),
            f"{inside}/{names.REGION_DIR}",
            read_only=False,
            private_data=True,
        ),
    )


def _identify(device: BoundDevice) -> str:
    if device.share_id:
        return device.share_id.replace("-", "").lower()
    # A card without shares: its request and name are unique in the claim.
    return hashlib.sha256(f"{device.request}/{device.device}".encode()).hexdigest()[:32]
