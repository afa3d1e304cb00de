"""One real cluster with hami-dra in it, per test module."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from hami_dra.testing.simgpu import A100, T4
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import cluster, cluster_config, kubernetes
from tests.cluster.stack import Stack

CASE_PROPERTY = "golden"
MEASURED_PROPERTY = "measured"

__all__ = ["cluster", "cluster_config", "kubernetes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a cluster, and give it time: a retry by kubelet takes up to 90 s."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()) or "cluster" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many golden cases were allocated as wanted, by dialect, and what was measured."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                if name == CASE_PROPERTY:
                    counts.setdefault(value, Counter())[outcome] += 1
                if name == MEASURED_PROPERTY:
                    terminalreporter.line(value)
    for what, count in sorted(counts.items()):
        terminalreporter.line(f"{what}: {count['passed']} as wanted, {count['failed']} not")


@pytest.fixture(scope="module")
def stack(cluster: Cluster) -> Iterator[Stack]:
    """Install hami-dra with two unlike cards."""
    installed = Stack.install(cluster, (A100, T4))
    yield installed
    print(installed.cluster.logs("node")[-4000:])
    print(installed.cluster.logs("webhook")[-4000:])


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what takes a line of figures, which is printed at the end."""
    return lambda line: record_property(MEASURED_PROPERTY, line)


@pytest.fixture(autouse=True)
def clean_namespace(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the default namespace empty, so that a failed test fails alone."""
    yield
    if "stack" not in request.fixturenames:
        return
    installed: Stack = request.getfixturevalue("stack")
    installed.ensure_node()
    for kind in ("pods", "resourceclaims"):
        installed.cluster.kubectl("delete", kind, "--all", "--grace-period=1")
    installed.cluster.wait_for_all("resourceclaims", lambda items: not items)
