"""From what NVML says to what is published: pure translations of single values."""

import re
from typing import Final

from hami_dra.policy.devices import GpuFacts

__all__ = ["GpuFacts", "name_architecture", "name_brand", "normalize_bus_id", "register_name"]

_BRANDS: Final = {
    1: "Quadro",
    2: "Tesla",
    3: "NVS",
    4: "Grid",
    5: "GeForce",
    6: "Titan",
    7: "NvidiaVApps",
    8: "NvidiaVPC",
    9: "NvidiaVCS",
    10: "NvidiaVWS",
    11: "NvidiaCloudGaming",
    12: "QuadroRTX",
    13: "NvidiaRTX",
    14: "Nvidia",
    15: "GeForceRTX",
    16: "TitanRTX",
}
"""nvmlBrandType_t (nvml.h), spelled as existing selectors on ``brand`` spell it."""

_ARCHITECTURES: Final = {3: "Kepler", 5: "Maxwell", 6: "Pascal", 9: "Hopper"}
"""By compute capability major; the others depend on the minor, or span several majors."""
_TURING_MINOR: Final = 5
_ADA_MINOR: Final = 9
_VOLTA, _AMPERE, _BLACKWELL = 7, 8, (10, 11, 12)

_BUS_ID: Final = re.compile(r"([0-9a-f]+):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


def register_name(nvml_name: str) -> str:
    """Return the model as HAMi registers it, which ``use-gputype`` is compared with."""
    return nvml_name if nvml_name.startswith("NVIDIA") else f"NVIDIA-{nvml_name}"


def name_brand(number: int) -> str:
    """Return the name of an ``nvmlBrandType_t``; "Unknown" for one newer than this list."""
    return _BRANDS.get(number, "Unknown")


def name_architecture(major: int, minor: int) -> str:
    """Return the architecture that has a compute capability; "Unknown" if none is known."""
    if major == _VOLTA:
        return "Turing" if minor >= _TURING_MINOR else "Volta"
    if major == _AMPERE:
        return "Ada Lovelace" if minor >= _ADA_MINOR else "Ampere"
    return "Blackwell" if major in _BLACKWELL else _ARCHITECTURES.get(major, "Unknown")


def normalize_bus_id(text: str) -> str:
    """Return ``dddd:bb:dd.f`` in lower case; NVML writes the domain with 8 capital digits.

    Raises:
        ValueError: Not a PCI address.
    """
    match = _BUS_ID.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is not a PCI address")
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function}"
