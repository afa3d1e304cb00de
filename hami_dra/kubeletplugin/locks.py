"""One lock for each claim: work on different claims runs at once, on one claim in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ClaimLocks:
    """Locks by claim UID that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def hold(self, uid: str) -> AsyncIterator[None]:
        """Hold a claim's lock for the block; waiting may be cancelled."""
        lock = self._locks.setdefault(uid, asyncio.Lock())
        self._users[uid] = self._users.get(uid, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[uid] -= 1
            if not self._users[uid]:
                del self._users[uid], self._locks[uid]
