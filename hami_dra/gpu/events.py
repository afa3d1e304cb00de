"""Errors of cards as NVML reports them: XIDs, and memory errors that could not be corrected.

NVML keeps its list of cards as long as somebody has initialised it. This room listens for as long
as the process lives, so a card that comes, or comes back, is seen only after `reopen`.
"""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import Any, Final

from hami_dra.contract.errors import RetryError
from hami_dra.gpu.daemon import run_in_daemon_thread, tell
from hami_dra.gpu.library import NvmlLibrary
from hami_dra.gpu.source import Watch
from hami_dra.policy.health import CardEvent

_DOUBLE_BIT_ECC: Final = 0x2
_XID: Final = 0x8
"""nvmlEventType… (nvml.h)."""
_TIMEOUT: Final = 10
"""NVML_ERROR_TIMEOUT."""
_WAIT_MS: Final = 1000
"""How late a stop or a reopening is noticed."""
_AGAIN_SECONDS: Final = 5.0


class NvmlEvents:
    """Listens in a daemon thread of its own.

    Args:
        library: NVML.
        again_seconds: Pause after NVML failed, and between looks for a first card.
    """

    def __init__(self, library: NvmlLibrary, *, again_seconds: float = _AGAIN_SECONDS) -> None:
        self._library = library
        self._again_seconds = again_seconds
        self._stopped = False
        self._wake = threading.Event()

    async def run(
        self, on_event: Callable[[CardEvent], None], on_watch: Callable[[Watch], None]
    ) -> None:
        """Listen until cancelled; see `EventSource.run`.

        Raises:
            FatalError: Only a new process can hear events.
        """
        loop = asyncio.get_running_loop()

        def work() -> None:
            while not self._stopped:
                self._wake.clear()
                try:
                    self._listen(
                        lambda event: tell(loop, on_event, event),
                        lambda watch: tell(loop, on_watch, watch),
                    )
                except (self._library.nvml.NVMLError, RetryError) as error:
                    tell(loop, on_watch, Watch(reason=str(error)))
                    self._wake.wait(self._again_seconds)

        try:
            await asyncio.shield(run_in_daemon_thread("nvml-events", work))
        finally:
            self._stopped = True
            self._wake.set()

    def reopen(self) -> None:
        """Watch the cards that are there now; see `EventSource.reopen`."""
        self._wake.set()

    def _listen(
        self, on_event: Callable[[CardEvent], None], on_watch: Callable[[Watch], None]
    ) -> None:
        with self._library.session() as nvml:
            events = nvml.nvmlEventSetCreate()
            try:
                uuids, watch = self._register(nvml, events)
                on_watch(watch)
                if not uuids:
                    self._wake.wait(self._again_seconds)
                while uuids and not self._wake.is_set():
                    data = self._wait(nvml, events)
                    if data is not None:
                        on_event(_read_event(data, uuids))
            finally:
                nvml.nvmlEventSetFree(events)

    def _register(self, nvml: Any, events: Any) -> tuple[dict[int | None, str], Watch]:
        """Register all cards that can be; return their UUIDs by handle."""
        uuids: dict[int | None, str] = {}
        unwatched: dict[str, str] = {}
        for index in range(int(nvml.nvmlDeviceGetCount())):
            name = f"card {index}"
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = nvml.nvmlDeviceGetUUID(handle)
                name = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
                supported = int(nvml.nvmlDeviceGetSupportedEventTypes(handle))
                if not supported & _XID:
                    unwatched[name] = "it does not report XIDs"
                    continue
                nvml.nvmlDeviceRegisterEvents(handle, supported & (_XID | _DOUBLE_BIT_ECC), events)
            except nvml.NVMLError as error:
                unwatched[name] = str(error)
            else:
                uuids[_address(handle)] = name
        return uuids, Watch(frozenset(uuids.values()), unwatched)

    def _wait(self, nvml: Any, events: Any) -> Any:
        try:
            return nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
        except nvml.NVMLError as error:
            if getattr(error, "value", None) == _TIMEOUT:
                return None
            raise


def _read_event(data: Any, uuids: dict[int | None, str]) -> CardEvent:
    uuid = uuids.get(_address(data.device), "")
    if int(data.eventType) & _XID:
        return CardEvent(uuid, "xid", int(data.eventData))
    return CardEvent(uuid, "ecc")


def _address(handle: Any) -> int | None:
    """Return what tells one handle from another: the library's pointer."""
    return ctypes.cast(handle, ctypes.c_void_p).value
