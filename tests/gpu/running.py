"""Starting workers and hearing from them."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_PATIENCE_SECONDS: Final = 300.0
"""Past that a worker is ended, and its case has failed."""


class WorkerError(Exception):
    """A worker did not do what it was asked for; the message is its last line."""


class Worker:
    """A program that answers once, and holds what it has until it is let go."""

    def __init__(self, request: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.worker", json.dumps(request)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Let it go at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it go, and wait for its end."""
        if self._process.poll() is None and kind is not None:
            self._process.kill()
        self._process.communicate(timeout=_PATIENCE_SECONDS)

    def hear(self) -> dict[str, Any]:
        """Return its answer.

        Raises:
            WorkerError: It has none.
        """
        assert self._process.stdout is not None
        ready, _writable, _errors = select.select([self._process.stdout], [], [], _PATIENCE_SECONDS)
        if not ready:
            self._process.kill()
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        _out, said = self._process.communicate(timeout=_PATIENCE_SECONDS)
        lines = said.strip().splitlines() or [f"it ended with {self._process.returncode}"]
        raise WorkerError(lines[-1])


def ask(request: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer of a worker that is let go at once.

    Raises:
        WorkerError: It has none.
    """
    with Worker(request, environment) as worker:
        return worker.hear()
