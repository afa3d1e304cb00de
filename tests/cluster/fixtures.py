"""The cluster for pytest. A conftest.py imports its fixtures.

A module that wants another cluster defines its own ``cluster_config`` fixture, module-scoped. A
machine that cannot run a cluster fails these tests: it does not skip them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import Config
from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def kubernetes(request: pytest.FixtureRequest) -> str:
    """Return the folder that pins the version."""
    return str(request.config.getoption("--kubernetes"))


@pytest.fixture(scope="module")
def cluster_config(kubernetes: str) -> Config:
    """Return what the module's cluster is to be like."""
    return Config(kubernetes=kubernetes)


@pytest.fixture(scope="module")
def cluster(cluster_config: Config) -> Iterator[Cluster]:
    """Give one fresh cluster to all tests of a module, and leave nothing behind."""
    try:
        started = Cluster.start(cluster_config)
    except ClusterError as error:
        pytest.fail(f"no test cluster: {error}", pytrace=False)
    with started:
        yield started
