"""What is decided once, and what each time."""

from typing import Any

import pytest

from hami_dra.contract.errors import RetryError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.policy.fit import Card, NodeCards
from hami_dra.policy.podcore import take_core
from hami_dra.policy.podplan import plan_pod
from hami_dra.webhook.planmemo import PlanMemo
from tests.unit.webhook.reviews import build_pod

_TWO_CARDS: frozenset[NodeCards] = frozenset({(Card(40960, 100, 10), Card(40960, 100, 10))})
_OTHER: frozenset[NodeCards] = frozenset({(Card(16384, 100, 10),)})


def _replica(number: int, **limits: Any) -> dict[str, Any]:
    pod = build_pod(**limits)
    token = f"kube-api-access-{number}"
    pod["metadata"] |= {"name": f"p-{number}", "uid": str(number)}
    pod["spec"]["volumes"] = [{"name": token}]
    pod["spec"]["containers"][0] |= {"image": "i", "volumeMounts": [{"name": token}]}
    return pod


def test_replicas_are_decided_twice_and_get_what_each_would_get() -> None:
    memo = PlanMemo(DEFAULT_SETTINGS)
    for number in range(8):
        pod = _replica(number, gpumem=3000 if number % 2 else 4000)
        plan, alone = memo.plan(take_core(pod), _TWO_CARDS, number), plan_pod(pod, nodes=_TWO_CARDS)
        assert plan is not None
        assert alone is not None
        assert (plan.patch, plan.template) == (alone.patch, alone.template)
    assert memo.decisions == 4


def test_a_pod_without_keys_is_remembered_too() -> None:
    memo = PlanMemo(DEFAULT_SETTINGS)
    for number in range(4):
        assert memo.plan(take_core(_replica(number)), _TWO_CARDS, number) is None
    assert memo.decisions == 2


def test_pods_that_take_cards_in_turn_are_decided_each() -> None:
    memo = PlanMemo(DEFAULT_SETTINGS)
    names = set()
    for number in range(6):
        pod = _replica(0, gpumem=3000)
        pod["metadata"]["annotations"] = {"hami.io/gpu-scheduler-policy": "spread"}
        plan = memo.plan(take_core(pod), _TWO_CARDS, number)
        assert plan is not None
        assert plan.template is not None
        names.add(plan.template["metadata"]["name"])
    assert len(names) == 2
    assert memo.decisions == 6


def test_other_cards_are_another_decision_and_the_same_again_are_not() -> None:
    memo = PlanMemo(DEFAULT_SETTINGS)
    core = take_core(_replica(0, **{"gpumem-percentage": 50}))
    memo.plan(core, _TWO_CARDS, 0)
    first = memo.plan(core, _TWO_CARDS, 0)
    assert memo.plan(core, frozenset(list(_TWO_CARDS)), 0) is first
    second = memo.plan(core, _OTHER, 0)
    assert first is not None
    assert second is not None
    assert first.template != second.template
    assert memo.decisions == 3


def test_errors_are_not_remembered() -> None:
    memo = PlanMemo(DEFAULT_SETTINGS)
    percentage = take_core(_replica(0, **{"gpumem-percentage": 50}))
    with pytest.raises(RetryError):
        memo.plan(percentage, None, 0)
    assert memo.plan(percentage, _TWO_CARDS, 0) is not None
    for _ in range(2):
        with pytest.raises(UserError):
            memo.plan(take_core(_replica(0, gpumem=-1)), _TWO_CARDS, 0)
    assert memo.decisions == 4


def test_the_memory_is_bounded_in_number_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hami_dra.webhook.planmemo._REMEMBERED", 2)
    memo = PlanMemo(DEFAULT_SETTINGS)
    for mib in (1, 2, 3, 1, 2, 1, 3, 1, 2):  # 1 is used again and again, 2 is forgotten for 3
        memo.plan(take_core(_replica(0, gpumem=mib)), _TWO_CARDS, 0)
    assert memo.decisions == 3 + 4
    long = _replica(0, gpumem=9)
    long["metadata"]["annotations"] = {"note": "x" * (8 << 10)}
    for _ in range(3):
        memo.plan(take_core(long), _TWO_CARDS, 0)
    assert memo.decisions == 10


def test_what_was_seen_once_is_forgotten_when_it_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hami_dra.webhook.planmemo._MOST_SEEN", 2)
    memo = PlanMemo(DEFAULT_SETTINGS)
    for mib in (1, 2, 3, 1, 1, 1):
        memo.plan(take_core(_replica(0, gpumem=mib)), _TWO_CARDS, 0)
    assert memo.decisions == 5
