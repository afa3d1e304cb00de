"""The allocators of all supported Kubernetes versions, built once and running once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import toolchain
from tests.cluster.toolchain import ORACLES
from tests.oracle.allocator import Allocator

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def allocators() -> Iterator[list[Allocator]]:
    """Return one allocator for each version, oldest first."""
    running = [
        Allocator(program, version) for version, program in toolchain.ensure_oracles().items()
    ]
    yield running
    for allocator in running:
        allocator.close()


@pytest.fixture(scope="session", params=range(len(ORACLES)), ids=[pin.folder for pin in ORACLES])
def allocator(allocators: list[Allocator], request: pytest.FixtureRequest) -> Allocator:
    """Return each version's allocator in turn."""
    number: int = request.param
    return allocators[number]
