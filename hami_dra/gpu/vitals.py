"""What a card says of its own health when it is asked."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from pynvml import (
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    NVML_VOLATILE_ECC,
)

from hami_dra.policy.health import CardVitals

_COUNTER: Final = (NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC)

T = TypeVar("T")


def read_vitals(nvml: Any, handle: Any) -> CardVitals:
    """Read a card's health. Blocking; what the card does not say, or fails to say, is ``None``."""

    def ask(question: Callable[[], T]) -> T | None:
        try:
            return question()
        except nvml.NVMLError:
            return None

    return CardVitals(
        uncorrected_errors=ask(lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, *_COUNTER))),
        remap_failed=ask(lambda: bool(nvml.nvmlDeviceGetRemappedRows(handle)[3])),
        recovery_action=ask(lambda: _read_action(nvml, handle)),
    )


def _read_action(nvml: Any, handle: Any) -> int | None:
    (field,) = nvml.nvmlDeviceGetFieldValues(handle, [NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    return int(field.value.uiVal) if field.nvmlReturn == 0 else None
