"""What `hami-dra convert` prints is accepted by a real API server and left alone by the webhook."""

from typing import Any

import pytest
from click.testing import CliRunner

from hami_dra.cli.convert import convert
from hami_dra.contract.names import POD_CLAIM_NAME, RESOURCE_GPU, RESOURCE_MEMORY_PERCENTAGE
from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.installation import Installation
from tests.cluster.manifests import IMAGE, pod, text
from tests.cluster.plan import Flags
from tests.cluster.simcards import make_cards
from tests.cluster.simnodes import SimNode, create_nodes


@pytest.fixture(scope="module")
def cluster_config() -> Config:
    """Return a cluster without kubelet."""
    return Config(flags=Flags(node=False))


def describe_job(name: str, **limits: int) -> dict[str, Any]:
    container = {"name": "main", "image": IMAGE, "resources": {"limits": limits}}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"spec": spec}},
    }


def test_converted_pods_run_as_unchanged_ones_would(cluster: Cluster) -> None:
    create_nodes(cluster.api, [SimNode(name="gpus", cards=make_cards(["A100", "T4"], node=1))])
    installation = Installation.install_admission(cluster)
    job = describe_job("job", **{RESOURCE_GPU: 1, RESOURCE_MEMORY_PERCENTAGE: 25})
    manifests = text(pod("alone", gpumem=3000, gpucores=30), job)
    done = CliRunner().invoke(convert, ["--sizes", "40960,16384", "-"], input=manifests)
    assert done.exit_code == 0, done.exception
    said = installation.apply_and_hear(done.output)
    assert "Warning" not in said

    def bound(items: list[dict[str, Any]]) -> bool:
        return len(items) == 2 and all(item["spec"].get("nodeName") for item in items)

    for item in cluster.wait_for_all("pods", bound, namespace="default"):
        assert [each["name"] for each in item["spec"]["resourceClaims"]] == [POD_CLAIM_NAME]
        (result,) = installation.claim_of(item["metadata"]["name"])["status"]["allocation"][
            "devices"
        ]["results"]
        memory = result["consumedCapacity"]["memory"]
        assert memory == ("3000Mi" if item["metadata"]["name"] == "alone" else "4Gi")
    # Those that admission makes have the label; these are their owner's.
    templates = cluster.api.items("resourceclaimtemplates", "default")
    assert len(templates) == 2
    assert not any(each["metadata"].get("labels") for each in templates)
