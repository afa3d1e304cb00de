"""What all tests stand on."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no judgement of the machine's speed: a law that fails has to
# fail for its author, not for the next change. `--hypothesis-profile default` looks further.
settings.register_profile(
    "project", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def idle_event_loop() -> Iterator[None]:
    """Own the main thread's event loop between tests, so that nobody else makes one.

    pytest-asyncio asks for the current loop before each test; without one, asyncio makes a loop
    that nobody closes, and its warning then fails some unlucky test much later.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let cluster tests run on another Kubernetes than the usual one."""
    parser.addoption(
        "--kubernetes",
        default="kubernetes",
        metavar="FOLDER",
        help="folder below tests/cluster/tools that pins the version of the test cluster",
    )
