"""The sizes of the cards that the cluster's nodes publish, kept from ResourceSlices.

For percentages of a card, which wait for the first list, and for warnings, which do not. A slice
of an outdated pool generation counts until its node removes it.
"""

from typing import Any

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.informer import Informer
from hami_dra.kube.objects import SLICES, Api
from hami_dra.policy.fit import Card, NodeCards, read_cards


class Inventory:
    """Distinct sets of cards per node.

    Attributes:
        changed: Set after every change; a reader clears it first.
    """

    def __init__(self, api: Api) -> None:
        self._informer = Informer(
            api,
            SLICES,
            field_selector=f"spec.driver={DRIVER_NAME}",
            handler=self._apply,
        )
        self.changed = self._informer.changed
        self._slices: dict[str, tuple[str, list[Card]]] = {}
        self._nodes: frozenset[NodeCards] | None = None

    async def run(self) -> None:
        """Follow the slices until cancelled."""
        await self._informer.run()

    async def wait_synced(self) -> None:
        """Return once the first list is in."""
        await self._informer.synced.wait()

    def nodes(self) -> frozenset[NodeCards] | None:
        """Return what nodes have, ``None`` while that is not known."""
        if not self._informer.synced.is_set():
            return None
        if self._nodes is None:
            pools: dict[str, list[Card]] = {}
            for pool, cards in self._slices.values():
                pools.setdefault(pool, []).extend(cards)
            self._nodes = frozenset(tuple(sorted(cards)) for cards in pools.values())
        return self._nodes

    def _apply(self, event: str, slice_: dict[str, Any]) -> None:
        name = str(slice_["metadata"]["name"])
        if event == "DELETED":
            self._slices.pop(name, None)
        else:
            pool = str(slice_.get("spec", {}).get("pool", {}).get("name", ""))
            self._slices[name] = pool, read_cards(slice_)
        self._nodes = None
