"""Bad input is refused, or waits, with an error that names the object and the field."""

import re
import sys

import pytest

from hami_dra.contract.names import LABEL_WEBHOOK_IGNORE
from tests.cluster.errors import CommandError
from tests.cluster.installation import WEBHOOK
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.stack import NODE_HEALTH, Stack


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (
            {"gpu": 1, "gpumem": -1},
            r'spec\.containers\[0\]\.resources\.limits\["?nvidia\.com/gpumem"?\].*-1',
        ),
        (
            {"gpu": 1, "gpumem": "10Gi"},
            r'spec\.containers\[0\]\.resources\.limits\["?nvidia\.com/gpumem"?\].*MiB.*10240',
        ),
        (
            {"gpu": 1, "gpumem-percentage": 101},
            r'limits\["?nvidia\.com/gpumem-percentage"?\].*from 0 to 100',
        ),
    ],
    ids=["negative", "bytes", "percentage"],
)
def test_a_wrong_request_is_denied_by_field(
    stack: Stack, limits: dict[str, int | str], words: str
) -> None:
    with pytest.raises(CommandError) as caught:
        stack.cluster.apply(text(pod("wrong", limits)))

    assert re.search(words, str(caught.value))
    assert "wrong" in str(caught.value)
    assert stack.cluster.api.items("pods", "default") == []


def test_a_pod_that_no_card_can_hold_is_warned_about_and_waits(stack: Stack) -> None:
    cluster = stack.cluster

    said = stack.apply_and_hear(text(pod("huge", gpu=1, gpumem=99999)))

    assert "99999 MiB" in said
    assert "40960 MiB" in said
    event = cluster.wait_for_all(
        "events",
        lambda items: any(
            item["reason"] == "FailedScheduling" and item["involvedObject"]["name"] == "huge"
            for item in items
        ),
        namespace="default",
    )
    assert any("cannot allocate all claims" in item.get("message", "") for item in event)
    assert cluster.kubectl_json("get", "pod", "huge")["status"]["phase"] == "Pending"
    cluster.kubectl("delete", "pod", "huge", "--wait")


def test_a_claim_that_no_card_can_hold_is_warned_about(stack: Stack) -> None:
    said = stack.apply_and_hear(text(claim("huge", memory="64Gi", cores="0", slots="1")))

    assert "huge" in said
    assert "40960 MiB" in said
    stack.cluster.kubectl("delete", "resourceclaim", "huge")


def test_an_unknown_field_in_the_opaque_config_is_denied(stack: Stack) -> None:
    wrong = claim("wrong", memory="1Gi", cores="0", slots="1", parameters={"memoryLimit": 5})

    with pytest.raises(CommandError) as caught:
        stack.cluster.apply(text(wrong))

    assert "spec.devices.config[0].opaque.parameters" in str(caught.value)
    assert "memoryLimit" in str(caught.value)


def test_where_the_webhook_does_not_look_the_node_refuses_the_opaque_config(stack: Stack) -> None:
    cluster = stack.cluster
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "unwatched", "labels": {LABEL_WEBHOOK_IGNORE: "ignore"}},
    }
    wrong = claim(
        "wrong",
        namespace="unwatched",
        memory="1Gi",
        cores="0",
        slots="1",
        parameters={"memoryLimit": 5},
    )
    cluster.apply(text(namespace))
    cluster.apply(text(wrong, pod_with_claim("p", "wrong", namespace="unwatched")))

    events = cluster.wait_for_all(
        "events",
        lambda items: any(item["reason"] == "FailedPrepareDynamicResources" for item in items),
        namespace="unwatched",
        timeout_seconds=60,
    )
    message = next(
        item["message"] for item in events if item["reason"] == "FailedPrepareDynamicResources"
    )

    assert "unwatched/wrong" in message
    assert "opaque.parameters" in message
    assert "memoryLimit" in message
    assert stack.leftovers().grants == ()
    cluster.kubectl("delete", "namespace", "unwatched", "--wait")


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "{}", '{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}'],
)
def test_a_malformed_review_is_a_bad_request(stack: Stack, body: str) -> None:
    program = (
        "import ssl, sys, urllib.request, urllib.error\n"
        "tls = ssl._create_unverified_context()\n"
        "post = urllib.request.Request(sys.argv[1], sys.argv[2].encode(),"
        " {'Content-Type': 'application/json'})\n"
        "try: print(urllib.request.urlopen(post, context=tls, timeout=5).status)\n"
        "except urllib.error.HTTPError as error: print(error.code, error.read().decode())\n"
    )

    said = stack.cluster.run([sys.executable, "-c", program, f"{WEBHOOK}/mutate-pods", body])

    assert said.stdout.startswith("400 ")
    assert len(said.stdout) > len("400 \n"), "the answer says what is wrong"


def test_a_cdi_directory_that_cannot_be_written_is_named(stack: Stack) -> None:
    cluster = stack.cluster
    cdi = str(cluster.cdi_directory)
    cluster.run(["mount", "--bind", cdi, cdi])
    cluster.run(["mount", "-o", "remount,bind,ro", cdi])
    try:
        cluster.apply(text(pod("blocked", gpu=1, gpumem=1000)))
        events = cluster.wait_for_all(
            "events",
            lambda items: any(
                item["reason"] == "FailedPrepareDynamicResources"
                and item["involvedObject"]["name"] == "blocked"
                for item in items
            ),
            namespace="default",
            timeout_seconds=60,
        )
        message = next(
            item["message"]
            for item in events
            if item["reason"] == "FailedPrepareDynamicResources"
            and item["involvedObject"]["name"] == "blocked"
        )
        assert cdi in message
        assert "cdi" in stack.readiness(NODE_HEALTH)
    finally:
        cluster.run(["umount", cdi])
    assert cluster.process_status("node")["state"] == "running"
    cluster.kubectl("delete", "pod", "blocked", "--wait")
    # The next pod is served: nothing has to be restarted once the directory is writable.
    cluster.apply(text(pod("served", gpu=1, gpumem=1000)))
    cluster.wait_pod_running("served")


def test_an_nvml_that_fails_leaves_the_process_up_with_an_empty_slice(stack: Stack) -> None:
    cluster = stack.cluster
    assert len(stack.devices()) == 2
    stack.stop_node()
    stack.break_nvml()
    stack.start_node(ready=False)

    cluster.wait_for_all(
        "resourceslices",
        lambda items: len(items) == 1 and not items[0]["spec"].get("devices"),
    )
    assert cluster.process_status("node")["state"] == "running"
    assert re.search(
        r"nvml: .*(UNINIT|init|Driver|unknown)", stack.readiness(NODE_HEALTH), re.IGNORECASE
    )

    stack.repair_nvml()
    cluster.wait_for_all(
        "resourceslices",
        lambda items: sum(len(item["spec"].get("devices") or []) for item in items) == 2,
        timeout_seconds=60,
    )
