"""Switches cards that this program is to divide to MIG mode, once nobody has a share of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final

import structlog

from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.node.ledger import Ledger
from hami_dra.node.partitions import Partitions, whole_cards
from hami_dra.node.recovery import always_alone
from hami_dra.policy.devices import GpuFacts
from hami_dra.policy.migdevices import ALL_CARDS

_log = structlog.get_logger(__name__)

_AGAIN_SECONDS: Final = 10.0
"""How long after a look a card that was held may have become free."""


class MigModes:
    """Keeps at it while a card is not as it should be.

    A card that waits is published with a taint, so no new claim takes a share of it meanwhile; a
    claim that was allocated just before is refused by `Partitions.check_whole`.

    Args:
        partitions: Switches the mode.
        ledger: Says which cards claims have shares of.
        gpus: Returns the cards that are not lost.
        look: Has the cards looked at anew, soon.
        alone: Tells whether there is no other instance of this program, and keeps others away
            meanwhile: one could be preparing a claim by what it knew of a card. Blocking.
        on_parts: Called when another instance of this program has made or ended MIG instances.
    """

    def __init__(
        self,
        partitions: Partitions,
        ledger: Ledger,
        *,
        gpus: Callable[[], Mapping[str, GpuFacts]],
        look: Callable[[], None],
        alone: Callable[[], AbstractContextManager[bool]] = always_alone,
        on_parts: Callable[[], None] = lambda: None,
    ) -> None:
        self._partitions = partitions
        self._ledger = ledger
        self._gpus = gpus
        self._look = look
        self._alone = alone
        self._on_parts = on_parts
        self._wake = asyncio.Event()
        self._unknown: frozenset[str] = frozenset()

    def wake(self) -> None:
        """Look soon: the cards are not what they were."""
        self._wake.set()

    async def run(self) -> None:
        """Switch what can be switched, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if await self._partitions.refresh():
                    self._on_parts()
                waiting = await self.switch()
            except HamiDraError as error:
                _log.warning("mig.modes_unknown", error=str(error))
                waiting = True
            if waiting:
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._wake.set)

    async def switch(self) -> bool:
        """Switch once; return whether a card still waits.

        Raises:
            HamiDraError: The ledger does not answer.
        """
        self._tell_unknown()
        waiting = self._partitions.list_waiting(self._gpus().values())
        if not waiting:
            return False
        async with _enter(self._alone()) as alone:
            if not alone:
                return True
            with self._partitions.switching(gpu.uuid for gpu in waiting):
                held = whole_cards(record.binding for record in await self._ledger.records())
                if await self._partitions.switch_modes(waiting, held):
                    self._look()
        return bool(self._partitions.list_waiting(self._gpus().values()))

    def _tell_unknown(self) -> None:
        """Say once which cards are to be divided and cannot be: a slip in the option, perhaps."""
        known = {ALL_CARDS}
        for gpu in self._gpus().values():
            if gpu.mig is not None:
                known |= {gpu.uuid, str(gpu.index)}
        unknown = self._partitions.chosen - known
        if unknown - self._unknown:
            _log.warning(
                "mig.no_such_card",
                cards=sorted(unknown),
                hint="--mig-dynamic takes UUIDs or indices of cards with MIG (nvidia-smi -L)",
            )
        self._unknown = unknown


@asynccontextmanager
async def _enter(context: AbstractContextManager[bool]) -> AsyncIterator[bool]:
    """Enter a context that may have to wait for other processes."""
    try:
        alone = await asyncio.to_thread(context.__enter__)
    except OSError as error:
        raise RetryError(f"the other instances cannot be looked for: {error}") from error
    try:
        yield alone
    finally:
        context.__exit__(None, None, None)
