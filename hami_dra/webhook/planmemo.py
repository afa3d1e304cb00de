"""Plans of pods, remembered: the replicas of a workload cost two decisions.

A plan is a pure function of the pod's core, the settings, the published cards and, where cards are
taken in turn, the pod's number. So equal inputs are looked up, by the bytes of the core, and
nothing has to be invalidated but all of it, when the cards change. A plan is kept from its second
time on: pods that have no equal would only drive out those that have, and keep the garbage
collector busy.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hami_dra.contract.settings import AdmissionSettings
from hami_dra.policy.fit import NodeCards
from hami_dra.policy.podplan import PodPlan, plan_pod

_REMEMBERED: Final = 128
_MOST_SEEN: Final = 4096
_LONGEST_KEY: Final = 8 << 10
"""A longer core is not remembered. Ordinary ones have 1 to 3 KiB; the worst that a tenant can
write, empty lists by the thousand, is 20 times as large in memory: 20 MiB for all together."""


class PlanMemo:
    """Plans pods; asks `plan_pod` only what it has not answered lately.

    Attributes:
        decisions: Number of plans that were made, not remembered.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self.decisions = 0
        self._settings = settings
        self._nodes: frozenset[NodeCards] | None = None
        self._plans: OrderedDict[bytes, PodPlan | None] = OrderedDict()
        self._seen: set[int] = set()

    def plan(
        self, core: Mapping[str, Any], nodes: frozenset[NodeCards] | None, rotation: int
    ) -> PodPlan | None:
        """Return what `plan_pod` returns. The plan may be another caller's too: do not change it.

        Args:
            core: What `take_core` returns.
            nodes: See `plan_pod`.
            rotation: See `plan_pod`.

        Raises:
            UserError: See `plan_pod`; like the next, never remembered.
            RetryError: See `plan_pod`.
        """
        if nodes is not self._nodes:
            # A slice that is written again changes no plan unless the cards change with it.
            if nodes != self._nodes:
                self._plans.clear()
            self._nodes = nodes
        key = msgspec.json.encode(core)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        self.decisions += 1
        plan = plan_pod(core, self._settings, nodes=nodes, rotation=rotation)
        in_turn = plan is not None and plan.request.placement.spread_cards
        if not in_turn and len(key) <= _LONGEST_KEY and self._was_seen(key):
            self._plans[key] = plan
            if len(self._plans) > _REMEMBERED:
                self._plans.popitem(last=False)
        return plan

    def _was_seen(self, key: bytes) -> bool:
        # By the hash, which is small; two keys that share one are only remembered too early.
        if hash(key) in self._seen:
            return True
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen.add(hash(key))
        return False
