"""Specification files in a CDI directory: whole or not there at all, also after a power cut."""

import errno
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from hami_dra.contract.errors import HamiDraError, RetryError

_PERMANENT: Final = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
)
_SUFFIX: Final = ".json"
_PROBE_BYTES: Final = 4096


class CdiDirectoryError(HamiDraError):
    """The CDI directory cannot be used as it is; trying again does not help."""


class CdiStore:
    """Our files in one CDI directory. Blocking; call it from a thread of its own.

    Args:
        directory: Watched by the container runtime, such as ``/var/run/cdi``.
        prefix: Only files that begin with it are ever listed or removed.
    """

    def __init__(self, directory: Path, *, prefix: str) -> None:
        self.directory = directory
        self._prefix = prefix

    def probe(self) -> None:
        """Prove that a file with content can be written and removed.

        Raises:
            CdiDirectoryError: It cannot, with the directory and what to do.
            RetryError: It cannot at the moment, such as on a full disk.
        """
        path = self.directory / f".{self._prefix}probe.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(bytes(_PROBE_BYTES))  # an empty file fits on a full disk
            finally:
                path.unlink(missing_ok=True)  # another instance may have been as quick
        except OSError as error:
            raise self._explain(error) from error

    def write(self, name: str, spec: Mapping[str, Any], *, shared: bool = False) -> bool:
        """Write a file durably and atomically; return whether anything changed.

        Args:
            name: Without suffix.
            spec: Its content.
            shared: See `write_durably`.

        Raises:
            CdiDirectoryError: See `probe`.
            RetryError: See `probe`.
        """
        content = msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n"
        path = self._path(name)
        try:
            if _read(path) == content:
                return False
            self.directory.mkdir(parents=True, exist_ok=True)
            write_durably(path, content, mode=0o644, shared=shared)
        except OSError as error:
            raise self._explain(error) from error
        return True

    def has(self, name: str) -> bool:
        """Whether there is such a file, whatever is in it."""
        return self._path(name).exists()

    def remove(self, name: str) -> None:
        """Remove a file. Idempotent.

        Raises:
            CdiDirectoryError: See `probe`.
            RetryError: See `probe`.
        """
        try:
            self._path(name).unlink(missing_ok=True)
            sync_directory(self.directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._explain(error) from error

    def names(self) -> list[str]:
        """Return the names of our files, sorted; none where there is no directory."""
        try:
            found = list(self.directory.iterdir())
        except OSError:
            return []
        return sorted(
            path.name.removesuffix(_SUFFIX)
            for path in found
            if path.name.startswith(self._prefix) and path.name.endswith(_SUFFIX)
        )

    def sweep_temporaries(self) -> None:
        """Remove what a killed writer left behind. Errors are left to the next write."""
        for path in self.directory.glob(f".{self._prefix}*.tmp"):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not name.startswith(self._prefix) or "/" in name:
            raise ValueError(f"{name!r} is not one of our specification names")
        return self.directory / f"{name}{_SUFFIX}"

    def _explain(self, error: OSError) -> HamiDraError:
        reason = error.strerror or str(error)
        if error.errno in _PERMANENT:
            return CdiDirectoryError(
                f"CDI directory {self.directory} is not writable: {reason}; mount it read-write "
                "into this process, or choose another with --cdi-dir (the container runtime must "
                "read the same one)"
            )
        return RetryError(f"CDI directory {self.directory}: {reason}")


def write_durably(
    path: Path, content: bytes, *, mode: int, shared: bool = False, sync_name: bool = True
) -> None:
    """Replace a file so that after a crash it holds the old or the new content, never half.

    The temporary file does not end in ``.json``, so a runtime never reads it; it is gone after an
    error.

    Args:
        path: The file.
        content: All of it.
        mode: Its permissions.
        shared: Whether another process may write it at the same time; else the temporary file
            has a fixed name, so that what a killed writer left is used up by the next.
        sync_name: Whether a power cut must not bring the old content back.
    """
    token = f"{secrets.token_hex(4)}." if shared else ""
    temporary = path.with_name(f".{path.name}.{token}tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask says
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    temporary.rename(path)
    if sync_name:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename or removal in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
