"""What a caller may ask of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.plan import Flags

if TYPE_CHECKING:
    from tests.cluster.images import Image

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "libvgpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a cluster is to be like."""

    kubernetes: str = "kubernetes"  # the folder under tools/ that decides the version
    flags: Flags = field(default_factory=Flags)
    base: Path = Path("/tmp")  # noqa: S108 - a short path: unix sockets live below it
    build: Path = BUILD  # where the C programs of the images are
    images: tuple[Image, ...] | None = None  # None: pause and cuda-test
    keep: bool = False  # keep the directory (logs, configuration) afterwards
    detached: bool = False  # live on when this process ends
    start_seconds: float = 90.0
