"""The driver's directory, and links in it that are followed as if it were the root."""

import errno
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
        pending = list(reversed(start.relative_to(self.local).parts))
        current = self.local
        followed = ""
        links = 0
        while pending:
            name = pending.pop()
            if name == "..":
                current = current.parent if current != self.local else current
                continue
            following = current / name
            try:
                target = following.readlink()
            except OSError as error:
                if error.errno != errno.EINVAL:  # which means that it is no link
                    raise LinkError(self._explain(start, error, followed)) from error
                current = following
                continue
            links += 1
            if links > _LONGEST_LINK_CHAIN:
                raise LinkError(f"{start} is a circle of links")
            followed = str(target)
            if target.is_absolute():
                current = self.local
                target = target.relative_to("/")
            pending.extend(reversed(target.parts))
        return current

    def _explain(self, start: Path, error: OSError, target: str) -> str:
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
