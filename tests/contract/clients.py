"""Programs in Python that use the simulated driver, each in a process of its own."""

import json
import subprocess
import sys
from typing import Any


def run_client(environment: dict[str, str], program: str) -> Any:
    """Run a program that prints JSON, and return that; it has to succeed."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
