"""The annotation that keeps the original request has every container's keys, whatever its kind."""

import copy
import json
from typing import Any

import pytest

from hami_dra.contract.errors import UserError
from hami_dra.contract.names import ANNOTATION_ORIGINAL_REQUEST
from hami_dra.policy.podplan import plan_pod


def container(name: str, lists: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"name": name, "resources": lists, **more}


def test_init_containers_sidecars_and_requests_are_kept() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {
            "initContainers": [
                container("covered", {"limits": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 10}}),
                container("own", {"limits": {"nvidia.com/gpu": 2, "nvidia.com/gpumem": "1k"}}),
                container("plain", {"limits": {"cpu": "1"}}),
                container(
                    "sidecar",
                    {"limits": {"nvidia.com/gpucores": "5"}},
                    restartPolicy="Always",
                ),
            ],
            "containers": [
                container(
                    "main",
                    {
                        "limits": {"cpu": "1", "nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"},
                        "requests": {"cpu": "1", "nvidia.com/gpu": "1", "nvidia.com/priority": 0},
                    },
                ),
                container("none", {"limits": {"nvidia.com/gpu": 0}}),
            ],
        },
    }
    plan = plan_pod(pod)
    assert plan is not None
    kept = json.loads(plan.pod["metadata"]["annotations"][ANNOTATION_ORIGINAL_REQUEST])
    assert kept == {
        "covered": {"limits": {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 10}},
        "own": {"limits": {"nvidia.com/gpu": 2, "nvidia.com/gpumem": "1k"}},
        "sidecar": {"limits": {"nvidia.com/gpucores": "5"}},
        "main": {
            "limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"},
            "requests": {"nvidia.com/gpu": "1", "nvidia.com/priority": 0},
        },
        "none": {"limits": {"nvidia.com/gpu": 0}},
    }


@pytest.mark.parametrize("place", ["limits", "requests"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("main", "x"),
        ("main", "memory"),
        ("main", "example.com/fpga"),
        ("side", "example.com/fpga"),
    ],
)
def test_a_made_up_annotation_writes_no_resource_that_admission_never_takes(
    place: str, name: str, key: str
) -> None:
    """Found with 100,000 pods: the API server refused what was put back into the pod."""
    main = container("main", {"limits": {"nvidia.com/gpu": "1"}})
    side = container("side", {})
    first = plan_pod({"metadata": {"name": "p"}, "spec": {"containers": [main, side]}})
    assert first is not None
    pod = copy.deepcopy(first.pod)
    pod["metadata"]["annotations"][ANNOTATION_ORIGINAL_REQUEST] = json.dumps(
        {name: {place: {key: "-1"}}}
    )
    pod["spec"]["containers"][0]["resources"]["limits"] = {"nvidia.com/gpu": "1"}
    said = rf"'{key}' in the {place} of container '{name}' was replaced .* remove"
    with pytest.raises(UserError, match=said) as denied:
        plan_pod(pod)
    assert denied.value.field == f'metadata.annotations["{ANNOTATION_ORIGINAL_REQUEST}"]'
