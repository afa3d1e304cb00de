"""What a node has on disk, and where its work is cut off."""

from collections.abc import Callable
from pathlib import Path


class PowerCut(BaseException):
    """Ends a life of the node in the middle of its work."""


def cut_after(step: str) -> Callable[[str], None]:
    def cut(name: str) -> None:
        if name == step:
            raise PowerCut(name)

    return cut


def snapshot(base: Path) -> dict[str, bytes]:
    """Return every file below the CDI and claims directories."""
    roots = (base / "cdi", base / "state" / "claims")
    return {
        str(path.relative_to(base)): path.read_bytes()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
