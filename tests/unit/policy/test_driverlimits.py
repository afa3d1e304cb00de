"""How high the driver's limits lie."""

import pytest

from hami_dra.contract.quantity import MIB
from hami_dra.policy.audit import ProcessUse
from hami_dra.policy.driverlimits import plan_ceilings
from tests.unit.policy.test_audit import CARD, A, B, device, hold, use

CONTEXT = 100


def plan(held: list, uses: list[ProcessUse] | None = None) -> dict[tuple[str, str], int]:  # type: ignore[type-arg]
    found = plan_ceilings(held, uses or (), context_mib=CONTEXT)
    return {key: ceiling // MIB for key, ceiling in found.items()}


def test_a_pod_may_have_its_share_and_what_one_process_needs() -> None:
    assert plan([hold("job", A)]) == {(CARD, A.uid): 3000 + CONTEXT}


def test_each_process_may_have_more_and_the_next_one_too() -> None:
    uses = [use(500, pid=1), use(500, pid=2), use(9, B, pid=3), use(9, uuid="GPU-1", pid=4)]

    assert plan([hold("job", A)], uses) == {(CARD, A.uid): 3000 + 3 * CONTEXT}


def test_shares_of_a_pod_add_up_and_pods_of_a_claim_have_each_all_of_it() -> None:
    held = [hold("one", A, B), hold("two", A, devices=(device(1000), device(500)))]

    assert plan(held) == {
        (CARD, A.uid): 4500 + CONTEXT,
        (CARD, B.uid): 3000 + CONTEXT,
    }


@pytest.mark.parametrize(
    "changes", [{"memory_mib": 0}, {"exclusive": True}, {"admin": True}, {"control_disabled": True}]
)
def test_a_pod_that_has_anything_without_a_limit_has_none(changes: dict[str, object]) -> None:
    held = [hold("one", A, B), hold("two", A, devices=(device(**changes),))]  # type: ignore[arg-type]

    assert plan(held) == {(CARD, B.uid): 3000 + CONTEXT}
