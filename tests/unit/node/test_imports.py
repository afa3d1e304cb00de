"""What a node does not import: each of these was found to cost more than it is worth there."""

import subprocess
import sys

import pytest

# structlog imports rich where it finds it; a node's container has none.
PROGRAM = """
import sys
sys.modules["rich"] = None
import hami_dra.cli.node, hami_dra.node.app
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def imported() -> frozenset[str]:
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    return frozenset(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        "aiohttp.web",  # 1.8 MiB
        "argparse",
        "celpy",  # only a configuration with an expression, or another command, needs it
        "cryptography",
        "hami_dra.cli.convert",
        "hami_dra.cli.explain",
        "hami_dra.controller",
        "hami_dra.policy.dialects",
        "hami_dra.testing",
        "hami_dra.webhook",
        "html",
        "http.server",
        "importlib.metadata",
        "kubernetes_asyncio",  # 37 MiB
        "multiprocessing",
        "prometheus_client",  # 1.4 MiB
        "wsgiref",
        "yaml",
    ],
)
def test_a_node_goes_without(name: str, imported: frozenset[str]) -> None:
    assert "hami_dra.node.app" in imported
    assert name not in imported
