"""What is better done when kubelet has stopped calling for a while."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from hami_dra.kubeletplugin.service import ClaimHandler, ClaimRef, PreparedDevice

_PAUSE_SECONDS: Final = 5.0


class Lulls:
    """A handler of kubelet's calls that does something else once none has ended for a while.

    Args:
        handler: Does the work.
        rest: What is done once after each burst of calls. It must not raise, nor take long: calls
            that begin meanwhile wait.
        pause_seconds: How long no call has ended then.
    """

    def __init__(
        self,
        handler: ClaimHandler,
        rest: Callable[[], None],
        *,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._handler = handler
        self._rest = rest
        self._pause_seconds = pause_seconds
        self._ended = 0.0
        self._expecting = False

    async def prepare(self, claim: ClaimRef) -> Sequence[PreparedDevice]:
        """See `ClaimHandler.prepare`."""
        try:
            return await self._handler.prepare(claim)
        finally:
            self._note()

    async def unprepare(self, claim: ClaimRef) -> None:
        """See `ClaimHandler.unprepare`."""
        try:
            await self._handler.unprepare(claim)
        finally:
            self._note()

    def _note(self) -> None:
        loop = asyncio.get_running_loop()
        self._ended = loop.time()
        if not self._expecting:  # one timer for a burst, not one for a call
            self._expecting = True
            loop.call_later(self._pause_seconds, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        rest_at = self._ended + self._pause_seconds
        if loop.time() < rest_at:
            loop.call_at(rest_at, self._look)
            return
        self._expecting = False
        self._rest()
