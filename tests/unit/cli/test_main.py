"""The command line tells a person what is wrong in one line."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "hami_dra", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin"},
    )


@pytest.mark.parametrize("command", ["node", "webhook", "controller"])
def test_every_process_has_help(command: str) -> None:
    told = run(command, "--help")

    assert told.returncode == 0
    assert "Usage:" in told.stdout


def test_the_commands_are_listed() -> None:
    told = run("--help")

    assert all(name in told.stdout for name in ("node", "webhook", "controller"))


def test_a_process_that_cannot_work_says_why_in_one_line(tmp_path: Path) -> None:
    told = run("node", "--node-name", "n", "--state-dir", str(tmp_path))

    assert told.returncode == 1
    assert told.stderr.startswith("hami-dra: no library at")
    assert "set --libvgpu" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_an_address_is_checked_before_anything_starts() -> None:
    told = run("node", "--node-name", "n", "--health-listen", "nowhere")

    assert told.returncode == 2
    assert "'nowhere' is not HOST:PORT" in told.stderr
