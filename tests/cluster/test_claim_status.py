"""What a node says of its claims, what containers read of them, and limits that change live."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hami_dra.contract.names import ANNOTATION_LIMITS, DRIVER_NAME
from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.errors import CommandError
from tests.cluster.manifests import claim, pod, pod_with_claim, text
from tests.cluster.simnodes import SimNode, create_nodes
from tests.cluster.stack import Stack
from tests.cluster.test_sharing import allocations

POLL_SECONDS = 1.0
METADATA = "/var/run/kubernetes.io/dra-device-attributes"
ROOT = Path(__file__).resolve().parents[2]


class EagerStack(Stack):
    """A stack whose node looks at claims every second, so that tests need not wait."""

    def node_arguments(self) -> list[str]:
        """Return the usual options and this one."""
        return [*super().node_arguments(), "--claim-poll-seconds", str(POLL_SECONDS)]


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Install hami-dra with two unlike cards."""
    installed = EagerStack.install(cluster, (A100, T4))
    yield installed
    print(installed.cluster.logs("node")[-4000:])


def entries(item: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list(((item or {}).get("status") or {}).get("devices") or ())


def conditions(entry: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in entry["conditions"]}


def wait_status(stack: Stack, name: str, **data: Any) -> list[dict[str, Any]]:
    """Return our entries once one of them says so."""
    found = stack.cluster.wait_for(
        "resourceclaims",
        name,
        lambda item: any(data.items() <= entry.get("data", {}).items() for entry in entries(item)),
        "default",
        30.0,
    )
    return entries(found)


def hami_dra(stack: Stack, *arguments: str, config: str = "") -> tuple[int, str]:
    """Run the command line as a person would; return status and what it printed."""
    done = stack.cluster.run(
        [
            sys.executable, "-m", "hami_dra", *arguments,
            "--kubeconfig", config or str(stack.cluster.admin_kubeconfig),
        ],
        {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def total_mib(stack: Stack, name: str) -> int:
    done = stack.cluster.exec(name, "cuprobe", "alloc", "--json", "1")
    return int(json.loads(done.stdout)["total_mib"])


def test_a_claim_says_what_was_granted_and_who_enforces_it(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(pod("shares", gpu=1, gpumem=3000, gpucores=30)))
    cluster.wait_pod_running("shares")
    item = stack.claim_of("shares")
    (entry,) = wait_status(stack, item["metadata"]["name"], memoryMiB=3000)

    (result,) = item["status"]["allocation"]["devices"]["results"]
    assert {key: entry[key] for key in ("driver", "pool", "device", "shareID")} == {
        key: result[key] for key in ("driver", "pool", "device", "shareID")
    }
    assert conditions(entry) == {"Ready": ("True", "Prepared"), "Enforced": ("True", "Libvgpu")}
    assert entry["data"] == {
        "uuid": A100.uuid,
        "backend": "libvgpu",
        "memoryMiB": 3000,
        "coresPercent": 30,
    }
    cluster.kubectl("delete", "pod", "shares", "--wait")


def test_entries_of_other_drivers_stay_and_ours_come_back(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(claim("job", memory="1Gi", cores="0", slots="1"), pod_with_claim("p", "job"))
    )
    cluster.wait_pod_running("p")
    (entry,) = wait_status(stack, "job", memoryMiB=1024)
    network = {**entry, "networkData": {"interfaceName": "eth7"}}
    # Another writer, with the rights of the cluster's administrator: a field of its own in our
    # entry stays, and what it takes away of ours is written again.
    body = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "job"},
        "status": {
            "devices": [
                {key: network[key] for key in ("driver", "pool", "device", "shareID")}
                | {"networkData": network["networkData"]}
            ]
        },
    }
    cluster.kubectl(
        "apply", "--server-side", "--subresource=status", "--field-manager=other", "-f", "-",
        input=json.dumps(body),
    )  # fmt: skip
    (merged,) = entries(cluster.kubectl_json("get", "resourceclaim", "job"))
    assert merged["networkData"] == {"interfaceName": "eth7"}
    assert merged["data"] == entry["data"]
    cluster.kubectl(
        "patch", "resourceclaim", "job", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"devices": None}}),
    )  # fmt: skip
    assert conditions(wait_status(stack, "job", memoryMiB=1024)[0])["Ready"][0] == "True"

    stack.stop_node()
    cluster.kubectl(
        "patch", "resourceclaim", "job", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": {"devices": None}}),
    )  # fmt: skip
    stack.start_node()
    wait_status(stack, "job", memoryMiB=1024)
    cluster.kubectl("delete", "pod", "p", "--wait")
    cluster.wait_for("resourceclaims", "job", lambda item: not entries(item), "default", 30.0)
    cluster.kubectl("delete", "resourceclaim", "job")
    assert stack.leftovers().none


def test_the_examples_of_the_reference_do_what_they_say(stack: Stack) -> None:
    cluster = stack.cluster
    page = (ROOT / "docs" / "reference" / "claim-config.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        name = yaml.safe_load(example)["metadata"]["name"]
        (mib,) = re.findall(r"# a program sees (\d+) MiB", example)
        cluster.apply(example)
        cluster.apply(text(pod_with_claim(name, name)))
        cluster.wait_pod_running(name)
        assert stack.visible_mib(name) == int(mib)
        (entry,) = wait_status(stack, name)
        assert (entry["data"]["backend"] == "libvgpu") is ("disableControl" not in example)
        cluster.kubectl("delete", "pod", name, "--wait", "--grace-period=1")
        cluster.kubectl("delete", "resourceclaim", name)


def test_a_field_that_nobody_knows_is_refused(stack: Stack) -> None:
    body = claim("too-much", memory="1Gi", cores="0", parameters={"memoryLimitMib": 1})

    with pytest.raises(CommandError, match="unknown field `memoryLimitMib`"):
        stack.cluster.apply(text(body))


def test_a_container_reads_its_share_where_the_protocol_says(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(
        text(
            claim("named", memory="1Gi", cores="0", slots="1"),
            pod_with_claim("direct", "named"),
            pod("made", gpu=1, gpumem=2000),
        )
    )
    file = f"{DRIVER_NAME}-metadata.json"
    for name, mib, place in (
        ("direct", 1024, "resourceclaims/named/gpu"),
        ("made", 2000, "resourceclaimtemplates/hami-gpu"),
    ):
        cluster.wait_pod_running(name)
        found = cluster.exec(
            name, "sh", "-c", f"cat {METADATA}/{place}*/{file} || cat {METADATA}/{place}/*/{file}"
        ).stdout
        new, old = (json.loads(line) for line in found.splitlines())
        (device,) = new["requests"][0]["devices"]
        assert new["apiVersion"] == "metadata.resource.k8s.io/v1beta1"
        assert old["apiVersion"] == "metadata.resource.k8s.io/v1alpha1"
        assert device["attributes"]["memoryMiB"] == {"int": mib}
        assert device["attributes"]["productName"] == {"string": "NVIDIA A100-SXM4-40GB"}
        attempt = f"find {METADATA} -name '*.json' -exec sh -c 'echo x > {{}}' ';' 2>&1"
        assert "Read-only" in cluster.exec(name, "sh", "-c", attempt, check=False).stdout
    cluster.kubectl("delete", "pod", "direct", "made", "--wait")
    cluster.kubectl("delete", "resourceclaim", "named")
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none
    assert not list(cluster.cdi_directory.glob("*metadata*"))


def test_a_limit_changes_while_a_program_runs(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(claim("live", memory="3000Mi", cores="30"), pod_with_claim("runs", "live")))
    cluster.wait_pod_running("runs")
    assert stack.visible_mib("runs") == 3000
    container = cluster.kubectl_json("get", "pod", "runs")["status"]["containerStatuses"][0]

    code, said = hami_dra(
        stack, "claims", "set-limit", "default/live", "--memory-mib", "1000", "--cores", "20"
    )
    assert (code, said) == (
        0,
        f"claim default/live: gpu on {A100.uuid}: 1000 MiB, 20 % compute\n",
    )
    assert stack.visible_mib("runs") == total_mib(stack, "runs") == 1000
    assert allocations(stack, "runs", 998) == ["CUDA_SUCCESS"]
    assert allocations(stack, "runs", 999) == ["CUDA_ERROR_OUT_OF_MEMORY"]
    (entry,) = wait_status(stack, "live", memoryMiB=1000, coresPercent=20)
    assert conditions(entry)["LimitsChanged"] == ("True", "Applied")

    # The same through a restart of the plugin, and for the next container.
    stack.stop_node()
    stack.start_node()
    assert stack.visible_mib("runs") == 1000
    cluster.apply(text(pod_with_claim("joins", "live")))
    cluster.wait_pod_running("joins")
    assert stack.visible_mib("joins") == 1000

    code, said = hami_dra(stack, "claims", "set-limit", "default/live", "--memory-mib", "3001")
    assert code == 1
    assert "must be from 1 to 3000" in said
    # A person who goes around the command line gets no more.
    wish = json.dumps({"gpu": {"memoryMiB": 40000}})
    cluster.kubectl(
        "annotate", "resourceclaim", "live", f"{ANNOTATION_LIMITS}={wish}", "--overwrite"
    )
    refused = cluster.wait_for(
        "resourceclaims",
        "live",
        lambda item: any(
            conditions(e).get("LimitsChanged") == ("False", "Refused") for e in entries(item)
        ),
        "default",
        30.0,
    )
    assert "must be from 1 to 3000" in json.dumps(refused)
    assert stack.visible_mib("runs") == 1000

    code, said = hami_dra(stack, "claims", "list", "-n", "default")
    assert code == 0
    assert "1000 MiB" in said
    code, said = hami_dra(stack, "claims", "show", "default/live")
    assert "LimitsChanged Refused" in said

    code, said = hami_dra(stack, "claims", "set-limit", "default/live", "--reset")
    assert (code, stack.visible_mib("runs")) == (0, 3000), said
    now = cluster.kubectl_json("get", "pod", "runs")["status"]["containerStatuses"][0]
    assert now["containerID"] == container["containerID"]
    cluster.kubectl("delete", "pod", "runs", "joins", "--wait")
    cluster.kubectl("delete", "resourceclaim", "live")


def test_who_may_not_write_claims_sets_no_limit(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.kubectl("create", "serviceaccount", "viewer")
    cluster.kubectl(
        "create", "role", "viewer", "--verb=get,list", "--resource=resourceclaims.resource.k8s.io"
    )
    cluster.kubectl(
        "create", "rolebinding", "viewer", "--role=viewer", "--serviceaccount=default:viewer"
    )
    cluster.apply(text(claim("mine", memory="1Gi", cores="0"), pod_with_claim("user", "mine")))
    cluster.wait_pod_running("user")
    viewer = str(cluster.service_account_kubeconfig("default", "viewer"))

    code, said = hami_dra(
        stack, "claims", "set-limit", "default/mine", "--memory-mib", "100", config=viewer
    )

    assert code == 1
    assert 'cannot patch resource "resourceclaims"' in said
    assert stack.visible_mib("user") == 1024
    cluster.kubectl("delete", "pod", "user", "--wait")
    cluster.kubectl("delete", "resourceclaim", "mine")


def test_the_optional_policy_leaves_limits_to_those_who_have_the_verb(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply((ROOT / "deploy" / "manifests" / "limits-policy.yaml").read_text())
    cluster.kubectl("create", "serviceaccount", "tenant")
    cluster.kubectl(
        "create", "role", "tenant", "--verb=get,list,patch,update",
        "--resource=resourceclaims.resource.k8s.io",
    )  # fmt: skip
    cluster.kubectl(
        "create", "rolebinding", "tenant", "--role=tenant", "--serviceaccount=default:tenant"
    )
    cluster.apply(text(claim("theirs", memory="1Gi", cores="0")))
    tenant = f"--kubeconfig={cluster.service_account_kubeconfig('default', 'tenant')}"

    def annotate(*arguments: str) -> str:
        try:
            return cluster.kubectl_said(
                "annotate", "resourceclaim", "theirs", "--overwrite", *arguments
            )
        except CommandError as error:
            return str(error)

    wish = f"{ANNOTATION_LIMITS}={{}}"
    # The API server takes a moment to compile a policy; until then it lets everything pass.
    said = ""
    while "may not set limits" not in said:
        said = annotate(wish, tenant, "--dry-run=server")
    assert "system:serviceaccount:default:tenant may not set limits" in annotate(wish, tenant)
    assert "annotated" in annotate("team=blue", tenant)
    assert "annotated" in annotate(wish)
    cluster.kubectl(
        "create", "role", "limits", "--verb=set-limit",
        "--resource=resourceclaims.resource.k8s.io",
    )  # fmt: skip
    cluster.kubectl(
        "create", "rolebinding", "limits", "--role=limits", "--serviceaccount=default:tenant"
    )
    said = ""
    while "annotated" not in said:
        said = annotate(f"{ANNOTATION_LIMITS}-", tenant)
    cluster.kubectl("delete", "resourceclaim", "theirs")
    cluster.kubectl("delete", "validatingadmissionpolicybinding", "hami-dra-claim-limits")


def test_another_nodes_plugin_writes_no_status_here(stack: Stack) -> None:
    cluster = stack.cluster
    cluster.apply(text(claim("ours", memory="1Gi", cores="0"), pod_with_claim("q", "ours")))
    cluster.wait_pod_running("q")
    (entry,) = wait_status(stack, "ours", memoryMiB=1024)
    create_nodes(cluster.api, [SimNode(name="other-node")])
    wanted = {**entry, "data": {**entry["data"], "memoryMiB": 9}}
    body = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "ours", "namespace": "default"},
        "status": {"devices": [wanted]},
    }

    def apply_as(node: str, what: dict[str, Any]) -> str:
        config = f"--kubeconfig={stack.kubeconfig('hami-dra-node', node)}"
        try:
            return cluster.kubectl_said(
                "apply", config, "--server-side", "--subresource=status", "--force-conflicts",
                "--dry-run=server", "--validate=false", "-f", "-",
                input=json.dumps(what),
            )  # fmt: skip
        except CommandError as error:
            return str(error)

    assert "serverside-applied" in apply_as(stack.node_name, body)
    said = apply_as("other-node", body)
    assert "changing status.devices requires" in said
    assert "serverside-applied" not in said
    # Nor what belongs to the scheduler, whoever asks.
    taken = {**body, "status": {"reservedFor": [{"resource": "pods", "name": "x", "uid": "y"}]}}
    assert "resourceclaims/binding" in apply_as(stack.node_name, taken)
    assert entries(cluster.kubectl_json("get", "resourceclaim", "ours")) == [entry]
    cluster.kubectl("delete", "pod", "q", "--wait")
    cluster.kubectl("delete", "resourceclaim", "ours")
    cluster.kubectl("delete", "node", "other-node")
