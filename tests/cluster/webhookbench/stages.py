"""What the stages of a review cost by themselves, in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.policy.podcore import take_core
from hami_dra.policy.podplan import plan_pod
from hami_dra.webhook.planmemo import PlanMemo
from hami_dra.webhook.review import Verdict, decode_review, encode_review
from tests.cluster.webhookbench.pods import list_reviews

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.cluster.webhookbench.report import Report

_COUNT = 400
_TIMES = 5
_NODES: frozenset[NodeCards] = frozenset({(Card(81920, 100, 10),) * 8, (Card(16384, 100, 10),) * 4})


def measure(report: Report) -> None:
    """Time each stage over many reviews; the best of a few times, which is the least disturbed."""
    bodies = list(list_reviews(_COUNT))
    pods = [decode_review(body).object or {} for body in bodies]
    memo = PlanMemo(DEFAULT_SETTINGS)
    verdicts = [
        Verdict(result="patched", patch=tuple(plan.patch))
        for plan in (plan_pod(pod, nodes=_NODES) for pod in pods)
        if plan is not None
    ]
    stages = {
        "decode": _time(decode_review, bodies),
        "decide": _time(lambda pod: plan_pod(pod, nodes=_NODES), pods),
        "decide, remembered": _time(lambda pod: memo.plan(take_core(pod), _NODES, 0), pods),
        "encode": _time(lambda verdict: encode_review("uid", verdict), verdicts),
    }
    figure = ", ".join(f"{stage} {us:.0f}" for stage, us in stages.items())
    report.say("CPU of a review's stages by themselves, us", figure)


def _time(stage: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    """Return the microseconds of one call."""
    best = float("inf")
    for _ in range(_TIMES):
        began = time.process_time_ns()
        for each in inputs:
            stage(each)
        best = min(best, time.process_time_ns() - began)
    return best / len(inputs) / 1000
