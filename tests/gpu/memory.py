"""The memory part: what programs get of a share, and what the driver takes besides."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.gpu.cases import MEMORY, MEMORY_LIMIT_MIB, MemoryCase
from tests.gpu.running import Worker, WorkerError, ask
from tests.gpu.setups import Limits, Setup
from tests.gpu.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gpu.bed import Machine

_RACERS: Final = 8
_ALLOCATORS: Final = {
    "expandable": "expandable_segments:True",
    "asynchronous": "backend:cudaMallocAsync",
}


def measure(setup: Setup, machine: Machine, used_mib: Callable[[], float | None]) -> Iterator[Row]:
    """Yield a row for each case.

    Args:
        setup: Whose library.
        machine: What there is; cases that it lacks something for are not measured.
        used_mib: What the driver says is used of the card, by all; ``None`` if it does not say.
    """
    for case in MEMORY:
        if machine.card is None or (case.needs_torch and not machine.torch):
            yield case.row(setup.name, None)
            continue
        try:
            with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
                more = machine.card.mib if case.beyond else 0
                limits = Limits(machine.card.uuid, more + MEMORY_LIMIT_MIB, spill=case.beyond)
                mib = _measure_one(case, setup, limits, Path(text), used_mib)
            mib = None if mib is None else mib - more
            yield case.row(setup.name, mib)
        except WorkerError as error:
            yield Row(f"{setup.name}: {case.title}, MiB", f"failed: {error}", held=False)


def _measure_one(
    case: MemoryCase,
    setup: Setup,
    limits: Limits,
    directory: Path,
    used_mib: Callable[[], float | None],
) -> float | None:
    environment = setup.environment(limits, directory)
    if case.name in _ALLOCATORS:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = _ALLOCATORS[case.name]
        environment["PYTORCH_ALLOC_CONF"] = _ALLOCATORS[case.name]
    request = {
        "what": "tensors" if case.needs_torch else "memory",
        "kind": "plain" if case.name == "race" else case.name,
        "most_mib": limits.memory_mib + MEMORY_LIMIT_MIB,
    }
    before = used_mib()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(request, environment))
            for _ in range(_RACERS if case.name == "race" else 1)
        ]
        charged = sum(float(worker.hear()["mib"]) for worker in workers)
        if case.target is not None:
            return charged
        after = used_mib()
    return None if before is None or after is None else after - before - charged


def ask_used(setup: Setup, machine: Machine) -> Callable[[], float | None]:
    """Return a question: what is used of the card, by all, as a program without a library hears."""

    def ask_now() -> float | None:
        if machine.card is None:
            return None
        with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
            environment = setup.environment(None, Path(text))
            answer = ask({"what": "used", "uuid": machine.card.uuid}, environment)["mib"]
        return None if answer is None else float(answer)

    return ask_now
