"""Every example works as its README says, on a real Kubernetes, and leaves nothing behind."""

from pathlib import Path

import pytest
import yaml

from tests.cluster.launch import ROOT
from tests.cluster.stack import Stack

EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_prints_what_it_promises(stack: Stack, example: Path) -> None:
    cluster = stack.cluster
    manifests = "\n---\n".join(path.read_text() for path in sorted(example.glob("*.yaml")))
    expected = (example / "expected.txt").read_text()
    pods = [
        item["metadata"]["name"] for item in yaml.safe_load_all(manifests) if item["kind"] == "Pod"
    ]

    cluster.apply(manifests)
    for pod in pods:
        stack.wait_pod_log(pod, expected.splitlines()[-1])
        assert cluster.pod_logs(pod) == expected

    cluster.kubectl("delete", "-f", "-", "--wait", input=manifests)
    cluster.wait_for_all("resourceclaims", lambda items: not items)
    assert stack.leftovers().none
