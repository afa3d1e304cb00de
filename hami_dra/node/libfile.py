"""libvgpu.so on the host: one file per version and content, never changed once it is there.

Running containers have their version mapped; replacing the file under them would be a crash.
"""

import hashlib
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra import __version__
from hami_dra.cdi.durable import write_durably
from hami_dra.contract import names
from hami_dra.contract.errors import FatalError, RetryError

_DIGEST_LENGTH: Final = 12
_LIBRARY_MODE: Final = 0o555
_PRELOAD_MODE: Final = 0o444
_DIRECTORY_MODE: Final = 0o755


@dataclass(frozen=True, slots=True)
class InstalledLibrary:
    """Files on the host that containers get.

    Attributes:
        library: The current libvgpu.so.
        preload: Content for ``/etc/ld.so.preload``.
    """

    library: Path
    preload: Path


def install_library(source: Path, state_dir: Path) -> InstalledLibrary:
    """Copy the library to ``<state>/lib/libvgpu-<version>-<digest>.so``. Idempotent. Blocking.

    Raises:
        FatalError: The source cannot be read.
        RetryError: The state directory cannot be written at the moment.
    """
    directory = state_dir / "lib"
    try:
        content = source.read_bytes()
    except OSError as error:
        raise FatalError(f"libvgpu cannot be read from --libvgpu {source}: {error}") from error
    try:
        digest = hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]
        installed = InstalledLibrary(
            library=directory / f"libvgpu-{__version__}-{digest}.so",
            preload=directory / "ld.so.preload",
        )
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        if not _holds(installed.library, content):
            write_durably(installed.library, content, mode=_LIBRARY_MODE, shared=True)
        line = f"{names.CONTAINER_LIBVGPU}\n".encode()
        if not _holds(installed.preload, line):
            write_durably(installed.preload, line, mode=_PRELOAD_MODE, shared=True)
    except OSError as error:
        raise RetryError(
            f"libvgpu cannot be installed into {directory}: {error}; --state-dir must be a "
            "writable directory on a local disk with room"
        ) from error
    return installed


def remove_unused(state_dir: Path, used: Container[str]) -> list[Path]:
    """Remove libraries that no prepared claim has, and half-written ones. Blocking.

    To be called while no other instance can install one. Returns what was removed; one that cannot
    be stays for the next start, as it is in nobody's way.
    """
    directory = state_dir / "lib"
    removed = []
    for path in sorted([*directory.glob("libvgpu-*.so"), *directory.glob(".*.tmp")]):
        if str(path) not in used:
            with suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False
