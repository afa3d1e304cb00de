"""Runs commands in a cluster's namespaces from outside, with a limit of time."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from tests.cluster.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping


def run(
    command: list[str], text: str | None, env: Mapping[str, str], timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a command as ``Cluster.enter_command`` made it, whatever it returns.

    Raises:
        CommandError: it took too long, and was killed.
    """
    stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    try:
        return subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            **stdin,
        )
    except subprocess.TimeoutExpired:
        shown = " ".join(command[command.index("--") + 1 :])
        raise CommandError(f"{shown} took longer than {timeout_seconds:.0f} s") from None


def failed(argv: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> CommandError:
    """Return the error that says what a command wrote."""
    output = (done.stderr + done.stdout).strip()
    return CommandError(f"{' '.join(argv)} failed (exit status {done.returncode}): {output}")
