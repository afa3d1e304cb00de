"""Specification files in a CDI directory: whole or not there at all, also after a power cut."""

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from hami_dra.cdi.durable import Writes, sync_directory, write_durably
from hami_dra.contract.errors import HamiDraError, RetryError

_PERMANENT: Final = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
)
_SUFFIX: Final = ".json"
_MODE: Final = 0o644
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
        self._directory = str(directory)
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
            raise self.explain(error) from error

    def write(
        self,
        name: str,
        spec: Mapping[str, Any],
        *,
        shared: bool = False,
        writes: Writes | None = None,
    ) -> bool:
        """Write a file durably and atomically; return whether anything changed.

        Args:
            name: Without suffix.
            spec: Its content.
            shared: See `write_durably`.
            writes: What the file is to be there with; else it is when this returns.

        Raises:
            CdiDirectoryError: See `probe`.
            RetryError: See `probe`.
        """
        content = msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n"
        path = self._place(name)
        try:
            if _read(path) == content:
                return False
            if not os.path.isdir(self._directory):  # noqa: PTH112 - see `_place`
                self.directory.mkdir(parents=True, exist_ok=True)
            if writes is None:
                write_durably(path, content, mode=_MODE, shared=shared)
            else:
                writes.replace(path, content, mode=_MODE, shared=shared)
        except OSError as error:
            raise self.explain(error) from error
        return True

    def has(self, name: str) -> bool:
        """Whether there is such a file, whatever is in it."""
        return os.path.exists(self._place(name))  # noqa: PTH110 - see `_place`

    def remove(self, name: str, writes: Writes | None = None) -> None:
        """Remove a file: for good with `writes`, else when this returns. Idempotent.

        Raises:
            CdiDirectoryError: See `probe`.
            RetryError: See `probe`.
        """
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._place(name))  # noqa: PTH108 - see `_place`
            if not os.path.isdir(self._directory):  # noqa: PTH112 - see `_place`
                return
            if writes is None:
                sync_directory(self.directory)
            else:
                writes.sync(self.directory)
        except OSError as error:
            raise self.explain(error) from error

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

    def find_path(self, name: str) -> Path:
        """Return where a file is, or would be.

        Raises:
            ValueError: The name is none of ours.
        """
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        # A name, not a Path object: at every Prepare, several times.
        if not name.startswith(self._prefix) or "/" in name:
            raise ValueError(f"{name!r} is not one of our specification names")
        return f"{self._directory}/{name}{_SUFFIX}"

    def explain(self, error: OSError) -> HamiDraError:
        """Return an error of this directory in words that say what to do."""
        reason = error.strerror or str(error)
        if error.errno in _PERMANENT:
            return CdiDirectoryError(
                f"CDI directory {self.directory} is not writable: {reason}; mount it read-write "
                "into this process, or choose another with --cdi-dir (the container runtime must "
                "read the same one)"
            )
        return RetryError(f"CDI directory {self.directory}: {reason}")


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see `CdiStore._place`
            return file.read()
    except FileNotFoundError:
        return None
