"""How the demo writes: numbered steps, quoted objects, checked facts."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import yaml

_WIDTH = 100


class CheckError(Exception):
    """A fact that the demo states turned out not to hold."""


class Page:
    """Prints to a terminal or a file, and keeps count of what was checked."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._steps = 0
        self._colour = sys.stdout.isatty()
        self.checks = 0

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self._steps += 1
        elapsed = time.monotonic() - self._started
        head = f" {self._steps}. {title} "
        print(f"\n{self._paint(head.ljust(_WIDTH - 8, '─'), '1')} {elapsed:5.1f} s", flush=True)

    def say(self, text: str) -> None:
        """Print a sentence."""
        print(f"   {text}", flush=True)

    def command(self, text: str) -> None:
        """Print a command as a person would type it."""
        print(f"   {self._paint('$ ' + text, '36')}", flush=True)

    def quote(self, text: str) -> None:
        """Print output or a file, line by line."""
        for line in text.rstrip("\n").splitlines():
            print(f"     {self._paint('│', '2')} {line}", flush=True)

    def show(self, value: Mapping[str, Any]) -> None:
        """Print an object as YAML in the order it has."""
        self.quote(yaml.safe_dump(dict(value), sort_keys=False, width=88))

    def check(self, statement: str, holds: bool, detail: object = "") -> None:  # noqa: FBT001 - reads as a sentence: check("…", a == b)
        """State a fact.

        Raises:
            CheckError: It does not hold; the demo then ends with status 1.
        """
        if not holds:
            print(f"   {self._paint('✗ ' + statement, '31')}", flush=True)
            raise CheckError(f"{statement}: {detail}")
        self.checks += 1
        print(f"   {self._paint('✓', '32')} {statement}", flush=True)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    def _paint(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text
