"""The sizes of the cards that the cluster's nodes publish, kept from ResourceSlices.

For percentages of a card, which wait for the first list, and for warnings, which do not. A slice
of an outdated pool generation counts until its node removes it.

Of a slice only the sizes of its cards are kept, and equal nodes share theirs: thousands of nodes
come in few kinds.
"""

from collections import Counter
from functools import lru_cache
from typing import Any, Final

from hami_dra.contract.names import DRIVER_NAME
from hami_dra.kube.informer import Informer
from hami_dra.kube.objects import SLICES, Api
from hami_dra.policy.fit import NodeCards, read_cards

_KINDS: Final = 1024
"""Distinct sets of cards that are shared; of more, each slice has its own."""


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
            keep=_keep_cards,
        )
        self.changed = self._informer.changed
        self._pool_of: dict[str, str] = {}
        self._pools: dict[str, dict[str, NodeCards]] = {}
        self._kinds: Counter[NodeCards] = Counter()
        self._nodes: frozenset[NodeCards] = frozenset()

    async def run(self) -> None:
        """Follow the slices until cancelled."""
        await self._informer.run()

    async def wait_synced(self) -> None:
        """Return once the first list is in."""
        await self._informer.synced.wait()

    def nodes(self) -> frozenset[NodeCards] | None:
        """Return what nodes have, ``None`` while that is not known.

        The same object as before as long as the kinds of nodes are the same.
        """
        if not self._informer.synced.is_set():
            return None
        if self._nodes != self._kinds.keys():
            self._nodes = frozenset(self._kinds)
        return self._nodes

    def _apply(self, event: str, kept: dict[str, Any]) -> None:
        name = str(kept["metadata"]["name"])
        old = self._pool_of.pop(name, None)
        if old is not None:
            self._change(old, name, None)
        if event != "DELETED":
            self._pool_of[name] = kept["pool"]
            self._change(kept["pool"], name, kept["cards"])

    def _change(self, pool: str, name: str, cards: NodeCards | None) -> None:
        slices = self._pools.setdefault(pool, {})
        if slices:
            self._count(_join(slices), -1)
        if cards is None:
            del slices[name]
        else:
            slices[name] = cards
        if slices:
            self._count(_join(slices), 1)
        else:
            del self._pools[pool]

    def _count(self, kind: NodeCards, change: int) -> None:
        self._kinds[kind] += change
        if not self._kinds[kind]:
            del self._kinds[kind]


def _keep_cards(slice_: dict[str, Any]) -> dict[str, Any]:
    metadata = slice_["metadata"]
    return {
        "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
        "pool": str((slice_.get("spec") or {}).get("pool", {}).get("name", "")),
        "cards": _share(tuple(sorted(read_cards(slice_)))),
    }


def _join(slices: dict[str, NodeCards]) -> NodeCards:
    if len(slices) == 1:
        return next(iter(slices.values()))
    return _share(tuple(sorted(card for cards in slices.values() for card in cards)))


@lru_cache(maxsize=_KINDS)
def _share(cards: NodeCards) -> NodeCards:
    """Return the tuple that was first given of those that are equal."""
    return cards
