"""The slow correction of what a share's launches are charged, by what NVML sees of its processes.

The node's part of libvgpu's compute controller: the same numbers as ``vgpu_trim_step`` in
``libvgpu/src/compute_trim.c``, where the reasons stand; tests/contract/test_trim.py compares them.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

UNCHANGED: Final = 1000
WHOLE: Final = 1000
LOWEST: Final = 100
HIGHEST: Final = 10000
CHARGED_MOST_US: Final = 2**31 - 1
_OTHERS_LEAST: Final = 20
_MEMORY_MS: Final = 1500
_FORGET_LEAST: Final = 80
_FORGET_MOST: Final = 500
_FEW: Final = 8
_ENOUGH_US: Final = 200_000


class Phase(IntEnum):
    """What became of the reading before."""

    IDLE = 0
    SKIPPED = 1
    COUNTED = 2


@dataclass(frozen=True, slots=True)
class TrimReading:
    """What one second told of a share.

    Attributes:
        limit: Of the share, in thousandths; 0 or 1000: none.
        observed: Thousandths of the card's time that the share's processes had.
        others: The same of all other processes.
        charged_us: GPU time that it was charged, less what it was given back.
        long_us: Of that, for kernels that the correction is for.
        owes: Whether what it launched is not paid for yet.
    """

    limit: int
    observed: int
    others: int
    charged_us: int
    long_us: int
    owes: bool


@dataclass(frozen=True, slots=True)
class Trim:
    """The correction of a share.

    Attributes:
        permille: What charges are to be multiplied with, in thousandths.
        phase: What became of the last reading.
        observed_us: GPU time that it had lately.
        short_us: What it was charged for kernels that are not corrected.
        untrimmed_us: What it would have been charged for the others without a correction.
    """

    permille: int = UNCHANGED
    phase: Phase = Phase.IDLE
    observed_us: int = 0
    short_us: int = 0
    untrimmed_us: int = 0


def step_trim(trim: Trim, now: TrimReading) -> Trim:
    """Return the correction for the next second."""
    if not 0 < now.limit < WHOLE or now.others < _OTHERS_LEAST:
        return Trim()  # alone, events tell the truth, and to a finer grain
    if not now.charged_us and not now.owes:
        return replace(trim, phase=Phase.IDLE) if trim.phase == Phase.COUNTED else trim
    if trim.phase == Phase.IDLE:
        return replace(trim, phase=Phase.SKIPPED)
    kept = 1000
    if trim.untrimmed_us + trim.short_us > _ENOUGH_US:
        used_ms = max(now.observed, _divide(now.charged_us, 1000))
        kept -= min(max(used_ms * 1000 // _MEMORY_MS, _FORGET_LEAST), _FORGET_MOST)
    observed_us = trim.observed_us * kept // 1000 + now.observed * 1000
    short_us = _divide(trim.short_us * kept, 1000) + now.charged_us - now.long_us
    untrimmed_us = _divide(trim.untrimmed_us * kept, 1000)
    untrimmed_us += _divide(now.long_us * 1000, trim.permille)
    permille = trim.permille
    if untrimmed_us + short_us >= _ENOUGH_US:
        if untrimmed_us < _divide(short_us, _FEW) or untrimmed_us <= 0:
            permille = UNCHANGED
        else:
            permille = (observed_us - short_us) * 1000 // untrimmed_us
        permille = min(max(permille, trim.permille * 2 // 3), trim.permille * 3 // 2)
        permille = min(max(permille, LOWEST), HIGHEST)
    return Trim(permille, Phase.COUNTED, observed_us, short_us, untrimmed_us)


def _divide(value: int, by: int) -> int:
    """Divide as C does: towards zero."""
    return value // by if value >= 0 else -(-value // by)
