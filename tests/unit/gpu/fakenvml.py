"""NVML as a small object with the functions of nvidia-ml-py that we call, over a list of cards."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED = 3
TIMEOUT = 10
GPU_IS_LOST = 15
MISMATCH = 18


class NvmlError(Exception):
    """As pynvml.NVMLError."""

    def __init__(self, value: int, text: str = "") -> None:
        super().__init__(text or f"NVML error {value}")
        self.value = value


class FakeCard:
    """One card's answers; an exception among them is raised.

    Attributes:
        answers: By the function's name without "nvmlDevice".
        hangs: Questions to it wait for `FakeNvml.release`.
    """

    def __init__(self, number: int) -> None:
        self.hangs = False
        self.answers: dict[str, Any] = {
            "GetHandleByIndex": number + 1,
            "GetCudaComputeCapability": (9, 0),
            "GetPciInfo": SimpleNamespace(busId=f"00000000:{number + 1:02X}:00.0"),
            "GetUUID": f"GPU-{number}",
            "GetMinorNumber": number + 4,
            "GetName": "NVIDIA H100 80GB HBM3",
            "GetBrand": 14,
            "GetMemoryInfo": SimpleNamespace(total=(81559 << 20) + 12345),
            "GetMigMode": NvmlError(NOT_SUPPORTED),
            "GetTotalEccErrors": 0,
            "GetRemappedRows": (0, 0, 0, 0),
            "GetFieldValues": [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=0))],
            "GetSupportedEventTypes": 0x1F,
            "RegisterEvents": None,
        }


class FakeNvml:
    """NVML of a machine.

    Attributes:
        cards: In the driver's order, found when the first session begins.
        init: Called by nvmlInit; may raise or wait.
        sessions: Sessions open now.
        inits: First sessions so far: how often cards were looked for.
        release: Lets everything that hangs go on.
        events: What nvmlEventSetWait_v2 returns or raises next; waits a little without any.
    """

    NVMLError = NvmlError

    def __init__(self, count: int = 2) -> None:
        self.cards = [FakeCard(number) for number in range(count)]
        self.init: Callable[[], None] = lambda: None
        self.sessions = 0
        self.inits = 0
        self.registered: list[int] = []
        self.release = threading.Event()
        self.events: list[Any] = []
        self._found: list[FakeCard] = []
        self._lock = threading.Lock()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let go at the end what hangs, so that no thread outlives a test."""
        try:
            yield
        finally:
            self.release.set()

    def nvmlInit(self) -> None:  # noqa: D102, N802 - NVML's name
        self.init()
        with self._lock:
            if not self.sessions:
                self.inits += 1
                self._found = list(self.cards)
            self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: D102, N802
        with self._lock:
            self.sessions -= 1

    def nvmlDeviceRegisterEvents(self, handle: int, types: int, _: object) -> None:  # noqa: D102, N802
        self._ask("RegisterEvents", handle)
        self.registered.append(types)

    def nvmlEventSetWait_v2(self, _: object, timeout_ms: int) -> Any:  # noqa: D102, N802
        assert timeout_ms > 0
        if not self.events:
            self.release.wait(0.005)
            raise NvmlError(TIMEOUT)
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlSystemGetDriverVersion": lambda: b"580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
            "nvmlDeviceGetCount": lambda: len(self._found),
            "nvmlDeviceGetHandleByIndex": lambda i: self._ask("GetHandleByIndex", i + 1),
            "nvmlEventSetCreate": object,
            "nvmlEventSetFree": lambda _: None,
        }
        if name in answers:
            return answers[name]
        return lambda handle, *_: self._ask(name.removeprefix("nvmlDevice"), handle)

    def _ask(self, question: str, handle: int) -> Any:
        card = self._found[handle - 1]
        if card.hangs:
            self.release.wait(10)
        answer = card.answers[question]
        if isinstance(answer, Exception):
            raise answer
        return answer


def report(card: int, kind: int, data: int = 0) -> SimpleNamespace:
    """Return an event of the card with this number, as nvmlEventSetWait_v2 does."""
    return SimpleNamespace(device=card + 1, eventType=kind, eventData=data)
