"""Whose library a program runs under, and what it is told of its share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hami_dra.contract.grant import Grant, GrantDevice, encode_grant

MIB: Final = 1 << 20
REPOSITORY: Final = Path(__file__).resolve().parents[2]
_FORGOTTEN: Final = ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True, slots=True)
class Limits:
    """A share of one card; 0 = not limited. `spill`: beyond the card is the host's memory."""

    uuid: str
    memory_mib: int = 0
    cores_percent: int = 0
    spill: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """How a program is started.

    Attributes:
        name: native, ours or other.
        library: That is preloaded; ``None`` for none.
        extra: What every program needs, as with the simulated driver.
    """

    name: str
    library: Path | None
    extra: dict[str, str]

    def environment(self, limits: Limits | None, directory: Path) -> dict[str, str]:
        """Return a program's environment.

        Args:
            limits: What it may use; processes with the same directory use it together.
            directory: Empty, or of a program that uses the same share.
        """
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in _FORGOTTEN
            and not key.startswith(("CUDA_DEVICE_", "CUDA_OVERSUBSCRIBE", "VGPU_"))
        }
        environment |= self.extra
        environment["PYTHONPATH"] = str(REPOSITORY)
        if self.library is None or limits is None:
            return environment
        environment["LD_PRELOAD"] = str(self.library)
        if self.name == "ours":
            return environment | _write_grant(limits, directory)
        # Others are told in HAMi's words.
        environment["CUDA_DEVICE_MEMORY_SHARED_CACHE"] = str(directory / "books.cache")
        environment["GPU_CORE_UTILIZATION_POLICY"] = "force"
        if limits.memory_mib:
            environment["CUDA_DEVICE_MEMORY_LIMIT"] = f"{limits.memory_mib}m"
        if limits.spill:
            environment["CUDA_OVERSUBSCRIBE"] = "true"
        if limits.cores_percent:
            environment["CUDA_DEVICE_SM_LIMIT"] = str(limits.cores_percent)
        return environment


def _write_grant(limits: Limits, directory: Path) -> dict[str, str]:
    share = directory / "grants/claim_gpu"
    (share / "region").mkdir(parents=True, exist_ok=True)
    device = GrantDevice(
        limits.uuid,
        limits.memory_mib * MIB,
        limits.cores_percent,
        core_policy="force",
        spill=limits.spill,
    )
    content = encode_grant(Grant("claim", "gpu", (device,)))
    if not (share / "grant").exists():
        (share / "grant").write_bytes(content)
    return {"VGPU_GRANT_ROOT": str(directory / "grants")}


def list_setups(build: Path, other: Path | None, extra: dict[str, str]) -> list[Setup]:
    """Return native, ours and, where one is named, another library.

    Args:
        build: Where libvgpu was built.
        other: A library to measure beside ours.
        extra: What every program needs.
    """
    setups = [
        Setup("native", None, extra),
        Setup("ours", build / "src/libvgpu-test.so", extra),
    ]
    return setups if other is None else [*setups, Setup("other", other, extra)]
