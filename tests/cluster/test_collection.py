"""The controller deletes templates that nobody needs and makes those again that pods wait for."""

import time
from collections.abc import Iterator

import pytest

from tests.cluster.installation import NAMESPACE
from tests.cluster.manifests import pod, text
from tests.cluster.stack import Stack

RESTORE_SECONDS = 2.0


@pytest.fixture(autouse=True)
def logs(stack: Stack) -> Iterator[None]:
    """Show what the controller did, and stop it."""
    yield
    if stack.cluster.process_status("controller")["state"] == "running":
        stack.stop_controller()
    print(stack.cluster.logs("controller")[-4000:])


def template_of(stack: Stack, name: str) -> str:
    found = stack.cluster.kubectl_json("get", "pod", name)
    return str(found["spec"]["resourceClaims"][0]["resourceClaimTemplateName"])


def templates(stack: Stack) -> set[str]:
    items = stack.cluster.api.items("resourceclaimtemplates", "default")
    return {str(item["metadata"]["name"]) for item in items}


def wait_template(stack: Stack, name: str, *, exists: bool = True) -> None:
    stack.cluster.wait_for_all(
        "resourceclaimtemplates",
        lambda items: any(item["metadata"]["name"] == name for item in items) == exists,
        namespace="default",
    )


def test_a_template_that_a_waiting_pod_misses_is_made_again(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("first", gpu=1, gpumem=700)))
    cluster.wait_pod_running("first")
    name = template_of(stack, "first")
    cluster.kubectl("delete", "resourceclaimtemplate", name)

    # The webhook remembers what it wrote minutes ago, so this pod comes without its template.
    cluster.apply(text(pod("second", gpu=1, gpumem=700)))
    assert template_of(stack, "second") == name
    assert name not in templates(stack)
    stack.start_controller()
    cluster.wait_pod_running("second")

    # While the controller watches, it takes no more than a moment.
    cluster.kubectl("delete", "resourceclaimtemplate", name)
    began = time.monotonic()
    cluster.apply(text(pod("third", gpu=1, gpumem=700)))
    wait_template(stack, name)
    assert time.monotonic() - began < RESTORE_SECONDS
    cluster.wait_pod_running("third")
    assert stack.visible_mib("third") == 700


def test_an_unused_template_goes_and_a_used_one_stays(stack: Stack) -> None:
    cluster = stack.cluster
    stack.start_controller(template_age_seconds=3)
    cluster.apply(text(pod("stays", gpu=1, gpumem=800), pod("goes", gpu=1, gpumem=3072)))
    cluster.wait_pod_running("stays")
    cluster.wait_pod_running("goes")
    used, unused = template_of(stack, "stays"), template_of(stack, "goes")

    cluster.kubectl("delete", "pod", "goes", "--wait")
    assert unused in templates(stack)
    wait_template(stack, unused, exists=False)
    assert used in templates(stack)

    stack.stop_controller()
    (lease,) = cluster.api.items("leases", NAMESPACE)
    assert lease["spec"].get("holderIdentity", "") == "", "released, not left to expire"


def test_a_pod_whose_template_is_lost_is_told(stack: Stack) -> None:
    cluster = stack.cluster
    lost = pod("lost")
    lost["spec"]["resourceClaims"] = [
        {"name": "hami-gpu", "resourceClaimTemplateName": "hami-gpu-0123456789abcdef"}
    ]
    cluster.apply(text(lost))
    stack.start_controller()
    cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "ResourceClaimTemplateLost" and item["type"] == "Warning"
            for item in items
        ),
        namespace="default",
    )
    said = cluster.kubectl("describe", "pod", "lost")
    assert "cannot make ResourceClaimTemplate hami-gpu-0123456789abcdef again" in said
    cluster.kubectl("delete", "pod", "lost", "--wait")
