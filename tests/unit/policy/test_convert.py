"""What convert writes is what admission would have made, and admission leaves it alone."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hami_dra.contract.errors import UserError
from hami_dra.contract.settings import AdmissionSettings, NvidiaSettings
from hami_dra.policy.convert import convert_object, describe_share
from hami_dra.policy.fit import Card
from hami_dra.policy.podplan import plan_pod
from hami_dra.policy.request import Share

NODES = ((Card(16384, 100, 10),), (Card(40960, 100, 10),))
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "nvidia.com/gpu": st.integers(0, 3),
        "nvidia.com/gpumem": st.integers(0, 50000),
        "nvidia.com/gpumem-percentage": st.integers(0, 100),
        "nvidia.com/gpucores": st.integers(0, 100),
        "cpu": st.just("1"),
    },
)
CONTAINERS = st.lists(LIMITS, min_size=1, max_size=3)
ANNOTATIONS = st.dictionaries(
    st.sampled_from(["nvidia.com/use-gputype", "nvidia.com/nouse-gpuuuid"]), st.text(max_size=20)
)


def make_pod(
    init: list[dict[str, Any]], main: list[dict[str, Any]], annotations: dict[str, str]
) -> dict[str, Any]:
    def name(kind: str, limits: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": f"{kind}{index}", "resources": {"limits": each}}
            for index, each in enumerate(limits)
        ]

    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", "annotations": annotations},
        "spec": {"initContainers": name("init", init), "containers": name("main", main)},
    }


@given(CONTAINERS, CONTAINERS, ANNOTATIONS, st.booleans(), st.booleans())
def test_admission_leaves_alone_what_convert_wrote(
    init: list[dict[str, Any]],
    main: list[dict[str, Any]],
    annotations: dict[str, str],
    hide: bool,  # noqa: FBT001
    sized: bool,  # noqa: FBT001
) -> None:
    settings = AdmissionSettings(nvidia=NvidiaSettings(overwrite_env=hide))
    nodes = NODES if sized else ()
    pod = make_pod(init, main, annotations)
    try:
        done = convert_object(pod, settings, nodes)
    except UserError:
        assume(False)  # noqa: FBT003
    again = plan_pod(done.body, settings, nodes=nodes)
    assert again is None or again.patch == []
    assert convert_object(done.body, settings, nodes).body is done.body
    plan = plan_pod(pod, settings, nodes=nodes)
    assert done.body == (plan.pod if plan else pod)
    made = [template["spec"] for template, _ in done.templates]
    assert made == ([plan.template["spec"]] if plan and plan.template else [])


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (Share("a", 1, memory_mib=5), "1 card, 5 MiB of it, any compute"),
        (
            Share("a", 2, memory_percent=5, cores_percent=7),
            "2 different cards, 5 % of the memory of each, 7 % of the compute",
        ),
        (
            Share("a", 1, memory_mib=9, cores_percent=100, exclusive=True),
            "1 card, for nobody else, 9 MiB of it",
        ),
    ],
)
def test_a_share_in_words(share: Share, said: str) -> None:
    assert describe_share(share) == said
