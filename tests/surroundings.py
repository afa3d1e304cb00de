"""What tests with a fake API server have around them; for conftest.py."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from hami_dra.testing.fakecluster import FakeCluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """An API server that knows the node."""
    async with FakeCluster() as fake:
        yield fake


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a name short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hd-") as directory:
        yield Path(directory)
