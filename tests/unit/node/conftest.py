"""Fixtures of the node's tests."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.surroundings import base, cluster

__all__ = ["base", "cluster"]


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory, for tests that wait for the disk more often than they can afford."""
    with tempfile.TemporaryDirectory(prefix="hd-", dir="/dev/shm") as directory:
        yield Path(directory)
