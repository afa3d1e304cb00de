"""The compute part: shares of one program alone, and of two on one card."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from tests.gpu.cases import SATURATING, ComputeCase, Mode, TenantsCase, expect, share_row, split_row
from tests.gpu.figures import judge_share, split_ratio
from tests.gpu.running import Worker, WorkerError, ask
from tests.gpu.setups import Limits, Setup
from tests.gpu.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.gpu.bed import Machine

_START_SECONDS: Final = 0.5
_TORCH_START_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to look.

    Attributes:
        windows: For each figure.
        window_seconds: Length of one; targets are for 1 s.
    """

    windows: int = 10
    window_seconds: float = 1.0


class ComputeBench:
    """Runs cases under several libraries, each beside what is done natively."""

    def __init__(self, setups: Sequence[Setup], machine: Machine, pace: Pace) -> None:
        self._native, *self._limited = setups
        self._machine = machine
        self._pace = pace
        self._ns_per_unit = 0.0
        self._natives: dict[tuple[Mode, int], float] = {}

    def measure_alone(self, cases: Iterable[ComputeCase]) -> Iterator[Row]:
        """Yield a row for each case and library: percent of what the card can do of its work.

        What is done natively is measured once.
        """
        for case in cases:
            for setup in self._limited:
                if not self._can(case):
                    yield share_row(case, setup.name, None)
                    continue
                try:
                    full = self._measure_native(
                        SATURATING.get(case.mode, case.mode), case.kernel_us
                    )
                    alone = 100 * self._measure_native(case.mode, case.kernel_us) / full
                    (rates,) = self._run(setup, case.mode, (case.kernel_us,), (case.limit,))
                    accuracy = judge_share(rates, full, expect(case.limit, alone))
                    yield share_row(case, setup.name, accuracy, alone)
                except WorkerError as error:
                    yield Row(case.title(setup.name), f"failed: {error}", held=False)

    def measure_tenants(self, cases: Iterable[TenantsCase]) -> Iterator[Row]:
        """Yield a row for each pair and library: parts of what each does natively and alone."""
        for case in cases:
            for setup in self._limited:
                if not self._can(case):
                    yield split_row(case, setup.name, None)
                    continue
                try:
                    done = [
                        statistics.fmean(rates) / self._measure_native(case.mode, kernel_us)
                        for rates, kernel_us in zip(
                            self._run(setup, case.mode, case.kernel_us, case.limits),
                            case.kernel_us,
                            strict=True,
                        )
                    ]
                    yield split_row(case, setup.name, split_ratio(*done))
                except WorkerError as error:
                    yield Row(case.title(setup.name), f"failed: {error}", held=False)

    def _can(self, case: ComputeCase | TenantsCase) -> bool:
        return self._machine.card is not None and (self._machine.torch or not case.needs_torch)

    def _measure_native(self, mode: Mode, kernel_us: int) -> float:
        """Return what is done in a second without any library, as the median of the windows."""
        known = self._natives.get((mode, kernel_us))
        if known is None:
            (rates,) = self._run(self._native, mode, (kernel_us,), (0,))
            known = self._natives[mode, kernel_us] = statistics.median(rates)
        return known

    def _run(
        self, setup: Setup, mode: Mode, kernel_us: Sequence[int], limits: Sequence[int]
    ) -> list[list[float]]:
        """Return each tenant's rates; tenants begin at the same moment."""
        torch = not kernel_us[0]
        begin_at = time.monotonic() + (_TORCH_START_SECONDS if torch else _START_SECONDS) * len(
            limits
        )
        workers: list[Worker] = []
        with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
            try:
                for index, (length, limit) in enumerate(zip(kernel_us, limits, strict=True)):
                    directory = Path(text) / str(index)
                    directory.mkdir()
                    request = self._request(mode, length, begin_at)
                    environment = setup.environment(self._limits(limit), directory)
                    workers.append(Worker(request, environment))
                return [list(map(float, worker.hear()["rates"])) for worker in workers]
            finally:
                for worker in workers:
                    worker.__exit__(None, None, None)

    def _limits(self, percent: int) -> Limits | None:
        assert self._machine.card is not None
        return Limits(self._machine.card.uuid, cores_percent=percent) if percent else None

    def _request(self, mode: Mode, kernel_us: int, begin_at: float) -> dict[str, Any]:
        if not self._ns_per_unit:
            with TemporaryDirectory(prefix="hami-dra-gpu-") as text:
                environment = self._native.environment(None, Path(text))
                self._ns_per_unit = float(ask({"what": "calibrate"}, environment)["ns_per_unit"])
        return {
            "what": "work",
            "mode": mode,
            "kernel_us": kernel_us,
            "ns_per_unit": self._ns_per_unit,
            "begin_at": begin_at,
            "windows": self._pace.windows,
            "window_seconds": self._pace.window_seconds,
        }
