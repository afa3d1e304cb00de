"""Where a plugin's two sockets are, alone on a node or beside another instance of itself.

Protocol facts (k8s.io/dynamic-resource-allocation kubeletplugin): an instance that may run beside
another puts its pod's UID into both names; where a path would be too long for the kernel, a hash
of the UID stands for it. The kubelet takes any name that ends in ``.sock``, so the hashed forms
only have to be unlike each other.
"""

import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from hami_dra.contract.errors import FatalError

PATH_LIMIT: Final = 107
"""Bytes of a path in sockaddr_un, without the final NUL (unix(7))."""
_POD_UID: Final = re.compile(r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?")
_SWEPT_NAME: Final = (
    r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9A-Za-z_-]{8}|[0-9A-Za-z_-]{11})"
)
"""What stands for an instance: a UUID, a static pod's UID, a hash."""


@dataclass(frozen=True, slots=True)
class PluginSockets:
    """Paths of one instance.

    Attributes:
        service: Where the DRA service listens.
        registration: Where the kubelet's plugin watcher finds it.
    """

    service: Path
    registration: Path


def name_sockets(kubelet_dir: Path, driver: str, *, pod_uid: str = "") -> PluginSockets:
    """Return the paths of an instance's sockets.

    Args:
        kubelet_dir: The kubelet's root directory.
        driver: Driver name.
        pod_uid: Of the instance's pod, if two may run at a time; "" for the only instance.

    Raises:
        FatalError: Every form is longer than the kernel allows, or the UID is none.
    """
    data, registry = kubelet_dir / "plugins" / driver, kubelet_dir / "plugins_registry"
    if not pod_uid:
        return PluginSockets(
            _first_that_fits(data / "dra.sock"),
            _first_that_fits(registry / f"{driver}-reg.sock"),
        )
    if not _POD_UID.fullmatch(pod_uid):
        raise FatalError(f"--pod-uid {pod_uid!r} is not a pod's metadata.uid")
    uid = pod_uid.encode()
    both = f"{driver}\0{pod_uid}".encode()
    return PluginSockets(
        _first_that_fits(data / f"dra-{pod_uid}.sock", data / f"dra-{_hash(uid, 6)}.sock"),
        _first_that_fits(
            registry / f"{driver}-{pod_uid}-reg.sock",
            registry / f"{driver}-{_hash(uid, 8)}-reg.sock",
            registry / f"dra-{_hash(both, 16)}-reg.sock",
        ),
    )


def list_sockets(kubelet_dir: Path, driver: str) -> list[Path]:
    """Return the sockets of all instances of a driver that ever ran here, living or not.

    A registration socket of the longest hashed form is not among them: it may be another
    driver's.
    """
    registration = re.compile(rf"{re.escape(driver)}-({_SWEPT_NAME}-)?reg\.sock")
    service = re.compile(rf"dra(-{_SWEPT_NAME})?\.sock")
    places = (
        (kubelet_dir / "plugins_registry", registration),
        (kubelet_dir / "plugins" / driver, service),
    )
    return [
        path
        for directory, names in places
        for path in (sorted(directory.iterdir()) if directory.is_dir() else ())
        if names.fullmatch(path.name)
    ]


def _hash(text: bytes, size: int) -> str:
    return urlsafe_b64encode(sha256(text).digest()[:size]).decode().rstrip("=")


def _first_that_fits(*paths: Path) -> Path:
    for path in paths:
        if len(str(path).encode()) <= PATH_LIMIT:
            return path
    raise FatalError(
        f"socket path {paths[-1]} has {len(str(paths[-1]).encode())} bytes, the kernel allows "
        f"{PATH_LIMIT}; use a shorter --kubelet-dir"
    )
