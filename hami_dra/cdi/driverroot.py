"""The driver's directory, and links in it that are followed as if it were the root."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LONGEST_LINK_CHAIN: Final = 40  # the kernel's own limit, path_resolution(7)


class LinkError(Exception):
    """A path below the root leads nowhere; the message says which link and where to."""


@dataclass(frozen=True, slots=True)
class DriverRoot:
    """A driver's directory, as this process sees it and as the container runtime sees it.

    They differ where this process runs in a container with the host mounted somewhere.

    Attributes:
        local: As this process sees it.
        host: As the container runtime sees it.
        devices: The host's /dev as this process sees it, for roots without device nodes.
        sysfs: The machine's /sys.
    """

    local: Path
    host: Path
    devices: Path = Path("/dev")
    sysfs: Path = Path("/sys")

    def to_host(self, path: Path) -> str:
        """Return the host's path of something below the root."""
        return str(self.host / path.relative_to(self.local))

    def to_local(self, host_path: str) -> Path | None:
        """Return where this process sees a path of the host; ``None`` if it does not."""
        path = Path(host_path)
        if path.is_relative_to(self.host):
            return self.local / path.relative_to(self.host)
        if path.is_relative_to("/dev"):
            return self.devices / path.relative_to("/dev")
        return None

    def resolve(self, part: str | Path) -> Path:
        """Return the file or directory that a path below the root leads to, without links.

        Links are followed as a process would whose root this is: absolute targets begin here, and
        ``..`` does not leave it. So nothing outside can ever be the result.

        Args:
            part: Relative to the root, or a local path below it.

        Raises:
            LinkError: A component does not exist, or links go in a circle.
        """
        start = self.local / part
        return self._follow(self.local, start.relative_to(self.local).parts)

    def resolve_in(self, directory: Path, name: str) -> Path:
        """Return the same for a name in a directory that is itself the result of `resolve`.

        Raises:
            LinkError: See `resolve`.
        """
        return self._follow(directory, (name,))

    def _follow(self, begin: Path, parts: Sequence[str]) -> Path:
        # On strings: this runs for hundreds of names, and Path objects would be most of its time.
        top = str(self.local).rstrip("/")
        current = str(begin).rstrip("/")
        pending = list(reversed(parts))
        followed = ""
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                current = current.rpartition("/")[0] if current != top else top
                continue
            try:
                target = os.readlink(f"{current}/{name}")  # noqa: PTH115 - see above
            except OSError as error:
                if error.errno != errno.EINVAL:  # which means that it is no link
                    raise LinkError(self._explain(begin, parts, error, followed)) from error
                current = f"{current}/{name}"
                continue
            links += 1
            if links > _LONGEST_LINK_CHAIN:
                raise LinkError(f"{begin.joinpath(*parts)} is a circle of links")
            followed = target
            if target.startswith("/"):
                current = top
            pending.extend(part for part in reversed(target.split("/")) if part not in {"", "."})
        return Path(current or "/")

    def _explain(self, begin: Path, parts: Sequence[str], error: OSError, target: str) -> str:
        start = begin.joinpath(*parts)
        if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            return f"{error.filename} cannot be read: {error.strerror}"
        if not target:
            return f"{start} does not exist"
        outside = (
            f", which would be outside of {self.local}; a driver root has to contain what its "
            "links point to"
            if target.startswith("/") and self.local != Path("/")
            else ""
        )
        absent = error.filename
        return f"{start} is a dead link: {absent} does not exist (link to {target}{outside})"
