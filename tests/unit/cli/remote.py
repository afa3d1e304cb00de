"""Commands that talk to an API server, run as a person would."""

import asyncio
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner, Result

from hami_dra.testing.fakecluster import FakeCluster


async def run_command(
    command: click.Command, tmp_path: Path, cluster: FakeCluster, *arguments: str
) -> Result:
    """Run a command with a kubeconfig, in a thread: it has an event loop of its own."""
    config = tmp_path / "kubeconfig"
    context: dict[str, Any] = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [context],
                "clusters": [{"name": "c", "cluster": {"server": cluster.url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    call = [*arguments, "--kubeconfig", str(config)]
    return await asyncio.to_thread(CliRunner().invoke, command, call)
