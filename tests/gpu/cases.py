"""What is measured, in which order, and what is promised of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from tests.gpu.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.gpu.figures import Accuracy

Mode = Literal["loop", "sync", "graph", "matmul", "decode", "replay"]
TORCH_MODES: Final[tuple[Mode, ...]] = ("matmul", "decode", "replay")
LIMITS: Final = (10, 30, 50, 70, 90)
KERNELS_US: Final = (20, 200, 1000, 10000)
MEMORY_LIMIT_MIB: Final = 2048
_MOST_ERROR: Final = 1.0
_MOST_WANDER: Final = 2.0
_MOST_SPLIT_ERROR: Final = 2.0
SATURATING: Final[dict[Mode, Mode]] = {"sync": "loop", "decode": "replay"}
"""Programs that leave the card idle between launches, and the one that shows what it could do."""
_WORDS: Final[dict[Mode, str]] = {
    "loop": "kernels one after the other",
    "sync": "a kernel, and waiting for it",
    "graph": "a graph of 10 kernels",
    "matmul": "PyTorch: matmul loop",
    "decode": "PyTorch: decode loop of small kernels",
    "replay": "PyTorch: CUDA graph replay",
}


@dataclass(frozen=True, slots=True)
class ComputeCase:
    """A share of one program, alone on the card.

    Attributes:
        mode: What the program does.
        limit: Percent.
        kernel_us: Length of its kernels; 0 where PyTorch decides.
    """

    mode: Mode
    limit: int
    kernel_us: int = 0

    @property
    def needs_torch(self) -> bool:
        """Whether it runs with PyTorch."""
        return self.mode in TORCH_MODES

    def title(self, library: str) -> str:
        """Return what stands in the table."""
        length = f" of {_length(self.kernel_us)}" if self.kernel_us else ""
        return f"{library}: {_WORDS[self.mode]}{length}, {self.limit} %"


@dataclass(frozen=True, slots=True)
class TenantsCase:
    """Two programs on one card, each with a share of its own."""

    mode: Mode
    limits: tuple[int, int]
    kernel_us: tuple[int, int] = (0, 0)

    @property
    def needs_torch(self) -> bool:
        """Whether it runs with PyTorch."""
        return self.mode in TORCH_MODES

    @property
    def promised(self) -> float:
        """The first tenant's part of what both get done, in percent."""
        return 100 * self.limits[0] / sum(self.limits)

    def title(self, library: str) -> str:
        """Return what stands in the table."""
        lengths = " and ".join(_length(us) for us in self.kernel_us if us)
        return (
            f"{library}: two tenants, {self.limits[0]} and {self.limits[1]} %, {_WORDS[self.mode]}"
            + (f" of {lengths}" if lengths else "")
        )


def list_compute() -> Iterator[ComputeCase]:
    """Return the grid of limits, kernel lengths and ways to launch."""
    for mode in ("loop", "sync", "graph"):
        for kernel_us in KERNELS_US:
            for limit in LIMITS:
                yield ComputeCase(mode, limit, kernel_us)
    for mode in TORCH_MODES:
        for limit in LIMITS:
            yield ComputeCase(mode, limit)


def list_tenants() -> Iterator[TenantsCase]:
    """Return the cases of two tenants."""
    for limits in ((30, 70), (50, 50)):
        yield TenantsCase("loop", limits, (200, 200))
        yield TenantsCase("loop", limits, (20, 1000))
        for mode in TORCH_MODES:
            yield TenantsCase(mode, limits)


def thin(cases: Iterable[ComputeCase]) -> list[ComputeCase]:
    """Return a few of the grid: one kernel length, three limits, each way to launch."""
    return [
        case
        for case in cases
        if case.limit in {10, 50, 90} and case.kernel_us in {0, KERNELS_US[1]}
    ]


def share_row(
    case: ComputeCase, library: str, accuracy: Accuracy | None, alone: float = 100.0
) -> Row:
    """Return a case's row; the promise is ours, so only our library is judged.

    Args:
        case: What was run.
        library: Whose.
        accuracy: ``None`` if it was not measured.
        alone: Percent of the card that the program uses without a limit, which may be less.
    """
    ours = library == "ours"
    expected = expect(case.limit, alone)
    target = f"{expected:.0f} ± {_MOST_ERROR:.0f}, mean distance ≤ {_MOST_WANDER:.0f}"
    target = target if ours else ""
    if accuracy is None:
        return Row(case.title(library), target=target)
    held = abs(accuracy.error) <= _MOST_ERROR and accuracy.wander <= _MOST_WANDER
    figure = f"{accuracy.share:.1f} %, mean distance {accuracy.wander:.1f}"
    return Row(case.title(library), figure, target, held if ours else None)


def expect(limit: float, alone: float) -> float:
    """Return the share that a program should get: its limit, or all that it can use."""
    return min(limit, alone)


def split_row(case: TenantsCase, library: str, part: float | None) -> Row:
    """Return the row of two tenants: the first one's part of what both got done."""
    ours = library == "ours"
    target = f"{case.promised:.0f} ± {_MOST_SPLIT_ERROR:.0f}" if ours else ""
    if part is None:
        return Row(case.title(library), target=target)
    held = abs(part - case.promised) <= _MOST_SPLIT_ERROR
    return Row(
        case.title(library), f"{part:.1f} : {100 - part:.1f}", target, held if ours else None
    )


@dataclass(frozen=True, slots=True)
class MemoryCase:
    """What a program finds of its memory.

    Attributes:
        name: What the worker knows it by.
        title: What stands in the table.
        target: MiB; None where there is nothing to be held to.
        slack_mib: How much may be missing: pieces, and what the driver keeps.
        needs_torch: Whether it runs with PyTorch.
        beyond: The share is larger than the card by the target, and may use the host's memory;
            what is measured is what goes beyond the card.
    """

    name: str
    title: str
    target: int | None = None
    slack_mib: int = 0
    needs_torch: bool = False
    beyond: bool = False

    def row(self, library: str, mib: float | None) -> Row:
        """Return the case's row: never above the target, and not further below than the slack."""
        title = f"{library}: {self.title}, MiB"
        wanted = ""
        if self.target is not None:
            low = self.target - self.slack_mib
            wanted = f"{low} to {self.target}" if self.slack_mib else f"{self.target}"
        if mib is None:
            return Row(title, target=wanted)
        held = None if self.target is None else self.target - self.slack_mib <= mib <= self.target
        return Row(title, f"{mib:.0f}", wanted, held)


MEMORY: Final = (
    MemoryCase("told", "the card's size as cuMemGetInfo tells it", MEMORY_LIMIT_MIB),
    MemoryCase("plain", "cuMemAlloc until there is no more", MEMORY_LIMIT_MIB, 32),
    MemoryCase("managed", "cuMemAllocManaged until there is no more", MEMORY_LIMIT_MIB, 32),
    MemoryCase("stream", "cuMemAllocAsync until there is no more", MEMORY_LIMIT_MIB, 64),
    MemoryCase("handles", "cuMemCreate until there is no more", MEMORY_LIMIT_MIB, 32),
    MemoryCase("race", "eight processes at once, together", MEMORY_LIMIT_MIB, 64),
    MemoryCase("beyond", "cuMemAlloc with oversubscription, beyond the card", MEMORY_LIMIT_MIB, 32,
               beyond=True),
    MemoryCase("context", "used by the driver for one context, uncharged"),
    MemoryCase("tensors", "PyTorch tensors until OutOfMemoryError", MEMORY_LIMIT_MIB, 128,
               needs_torch=True),
    MemoryCase("expandable", "the same with expandable_segments", MEMORY_LIMIT_MIB, 128,
               needs_torch=True),
    MemoryCase("asynchronous", "the same with cudaMallocAsync", MEMORY_LIMIT_MIB, 128,
               needs_torch=True),
    MemoryCase("cublas", "used by the driver after a matmul, uncharged", needs_torch=True),
)  # fmt: skip


def _length(microseconds: int) -> str:
    return f"{microseconds // 1000} ms" if microseconds >= 1000 else f"{microseconds} µs"
