"""What the node plugin may not do, tried with its identity on a node."""

import json
import re
from typing import Any

import pytest

from hami_dra.contract.names import DRIVER_NAME
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import CommandError
from tests.cluster.installation import Installation
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes, describe_slices

_ACCOUNT = "hami-dra-node"
_MINE, _THEIRS = (
    SimNode(name=name, cards=make_cards(["A100"], node=number))
    for number, name in enumerate(("mine", "theirs"))
)
_ELSEWHERE = r"spec\.nodeName: is theirs.*node mine"


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    return Config(flags=Flags(node=False))


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Installation:
    """Install our rights, and a second node with a slice that its own plugin wrote."""
    installed = Installation(cluster)
    create_nodes(cluster.api, [SimNode(name="mine"), _THEIRS])
    installed.apply_manifests()
    # The API server takes a moment to compile a policy; until then it lets everything pass.
    nobodys = _slice(installed, "mine", nodeName="nobodys")
    said = ""
    while "nobodys" not in said:
        said = _ask(installed, "mine", "create", "--dry-run=server", body=nobodys)
    return installed


def _slice(installation: Installation, node: str, **spec: Any) -> dict[str, Any]:
    uid = installation.cluster.kubectl_json("get", "node", node)["metadata"]["uid"]
    kind = _MINE if node == "mine" else _THEIRS
    (body,) = describe_slices(kind, uid)
    return {**body, "spec": {**body["spec"], **spec}}


def _stored(installation: Installation, node: str) -> dict[str, Any]:
    (found,) = (item for item in installation.slices() if item["spec"]["nodeName"] == node)
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", **found}


def _ask(installation: Installation, node: str, *arguments: str, body: dict[str, Any]) -> str:
    """Return what the API server says to the plugin of a node, whether it obeys or not."""
    config = f"--kubeconfig={installation.kubeconfig(_ACCOUNT, node)}"
    try:
        return installation.cluster.kubectl_said(
            *arguments, config, "-f", "-", input=json.dumps(body)
        )
    except CommandError as error:
        return str(error)


def test_a_plugin_writes_the_slices_of_its_node(installation: Installation) -> None:
    body = _slice(installation, "mine")
    assert "created" in _ask(installation, "mine", "create", body=body)
    stored = _stored(installation, "mine")
    stored["spec"]["pool"]["generation"] += 1
    assert "replaced" in _ask(installation, "mine", "replace", body=stored)
    assert "deleted" in _ask(installation, "mine", "delete", body=stored)


def test_a_plugin_creates_no_slice_for_another_node(installation: Installation) -> None:
    said = _ask(installation, "mine", "create", body=_slice(installation, "theirs"))
    assert re.search(_ELSEWHERE, said)


@pytest.mark.parametrize("verb", ["replace", "delete"])
def test_a_plugin_changes_no_slice_of_another_node(installation: Installation, verb: str) -> None:
    before = _stored(installation, "theirs")
    changed = {**before, "spec": {**before["spec"], "devices": []}}
    assert re.search(_ELSEWHERE, _ask(installation, "mine", verb, body=changed))
    assert _stored(installation, "theirs") == before


def test_a_plugin_creates_no_slice_for_all_nodes(installation: Installation) -> None:
    body = _slice(installation, "mine", allNodes=True)
    del body["spec"]["nodeName"]
    assert "spec.nodeName: is empty" in _ask(installation, "mine", "create", body=body)


def test_a_plugin_creates_no_slice_of_another_driver(installation: Installation) -> None:
    body = _slice(installation, "mine", driver="gpu.example.com")
    assert "spec.driver: is gpu.example.com" in _ask(installation, "mine", "create", body=body)


def test_a_token_without_a_node_writes_nothing(installation: Installation) -> None:
    said = _ask(installation, "", "create", body=_slice(installation, "mine"))
    assert "names no node" in said


def test_a_plugin_reads_no_pods_and_writes_no_claims(installation: Installation) -> None:
    cluster = installation.cluster
    config = f"--kubeconfig={installation.kubeconfig(_ACCOUNT, 'mine')}"
    allowed = cluster.kubectl("auth", "can-i", "--list", config, "-n", "default")
    for line in allowed.splitlines():
        # Its own entries of a claim's status; the API server checks which those are.
        if re.match(r"resourceclaims\.resource\.k8s\.io/(status|driver)\s", line):
            assert re.search(r"\[(patch|associated-node:patch)\]$", line.strip())
        elif "resource.k8s.io" in line or "nodes" in line:
            assert not re.search(r"\b(patch|deletecollection)\b", line)
    own = ("associated-node:patch", f"resourceclaims.resource.k8s.io/{DRIVER_NAME}")
    assert "yes" in cluster.kubectl("auth", "can-i", *own, "--subresource=driver", config)
    for question in (
        ("list", "pods"),
        ("create", "pods", "--subresource=eviction"),
        ("update", "resourceclaims"),
        ("patch", "resourceclaims"),
        ("list", "resourceclaims"),
        ("watch", "resourceclaims"),
        ("update", "resourceclaims", "--subresource=status"),
        ("update", "resourceclaims", "--subresource=binding"),
        ("patch", "resourceclaims", "--subresource=binding"),
        ("associated-node:patch", "resourceclaims", "--subresource=driver"),
        ("arbitrary-node:patch", own[1], "--subresource=driver"),
        ("get", "events.events.k8s.io"),
        ("list", "secrets"),
    ):
        with pytest.raises(CommandError):
            cluster.kubectl("auth", "can-i", *question, config)
