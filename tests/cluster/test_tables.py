"""Golden rows and manifests, allocated by the real scheduler (tests/golden/README.md)."""

from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.tables.cases import Case
from tests.cluster.tables.manifests import load_manifests
from tests.cluster.tables.rows import load_rows
from tests.cluster.tables.runner import Runner, describe_cluster

pytestmark = pytest.mark.timeout(900)  # the first test waits for all cases
CASES = [*load_rows(), *load_manifests()]


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return a cluster without kubelet, of the version that is wanted."""
    return describe_cluster(kubernetes)


@pytest.fixture(scope="module")
def problems(cluster: Cluster, request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """Run every case that is selected, many at a time; return what is not as wanted."""
    selected = {
        str(item.callspec.id)
        for item in request.session.items
        if isinstance(item, pytest.Function) and "problems" in item.fixturenames
    }
    found = Runner(cluster, [case for case in CASES if case.name in selected]).run()
    print(cluster.logs("webhooks")[-4000:])
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_scheduler_allocates(
    case: Case,
    cluster: Cluster,
    problems: dict[str, list[str]],
    record_property: Callable[[str, object], None],
) -> None:
    record_property(
        "golden", f"Kubernetes {cluster.tools.kubernetes_version}, {case.dialect} {case.kind}s"
    )
    assert problems[case.name] == []
