"""The slow correction of what a share's launches are charged, by what NVML sees of its processes.

The node's part of libvgpu's compute controller: the same numbers as ``vgpu_trim_step`` in
``libvgpu/src/compute_trim.c``, where the reasons stand; tests/contract/test_trim.py compares them.
All in thousandths.
"""

from typing import Final

UNCHANGED: Final = 1000
WHOLE: Final = 1000
LOWEST: Final = 100
HIGHEST: Final = 1500
_DEAD_BAND: Final = 5
_OTHERS_LEAST: Final = 20
_THROTTLED_LEAST: Final = 100
_STEP: Final = 333


def step_trim(trim: int, *, limit: int, observed: int, throttled: int, others: int) -> int:
    """Return the factor for the next second.

    Args:
        trim: The factor that held.
        limit: Of the share; 0 or 1000: none.
        observed: Of the card's time, what the share's processes had.
        throttled: Of the second, how much a launch was waiting.
        others: Of the card's time, what all other processes had.
    """
    if not 0 < limit < WHOLE or others < _OTHERS_LEAST:
        return UNCHANGED  # alone, events tell the truth, and to a finer grain
    trim = trim or UNCHANGED
    error = observed - limit
    if (throttled < _THROTTLED_LEAST and error < 0) or abs(error) <= _DEAD_BAND:
        return trim
    # As C divides: towards zero.
    correction = abs(error) * 1000 // limit // 2
    correction = min(correction, _STEP) * (1 if error > 0 else -1)
    return min(max(trim * (1000 + correction) // 1000, LOWEST), HIGHEST)
