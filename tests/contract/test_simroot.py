"""The command that makes a host with simulated GPUs, as NVML sees what it made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hami_dra.testing import simroot

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
PROGRAM = (
    "import pynvml as n; n.nvmlInit()\n"
    "for i in range(n.nvmlDeviceGetCount()):\n"
    "    card = n.nvmlDeviceGetHandleByIndex(i)\n"
    "    print(n.nvmlDeviceGetName(card), n.nvmlDeviceGetUUID(card), sep=': ')\n"
)


def test_nvml_finds_the_cards_in_the_printed_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = ("--card", "T4", "--card", "A100", "--card", "T4")
    assert simroot.main([str(tmp_path / "sim"), "--build", str(BUILD), *cards]) == 0

    printed = capsys.readouterr().out
    assignments = printed.partition(" \\")[0].split()
    assert f"--driver-root {tmp_path / 'sim'}" in printed
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", PROGRAM],
        env=os.environ | dict(item.split("=", 1) for item in assignments),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "Tesla T4: GPU-74000000-5157-4a2b-9c3d-000000000000",
        "NVIDIA A100-SXM4-40GB: GPU-a1000000-5157-4a2b-9c3d-000000000001",
        "Tesla T4: GPU-74000000-5157-4a2b-9c3d-000000000002",
    ]


def test_a_missing_build_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        simroot.main([str(tmp_path / "sim"), "--build", str(tmp_path)])
    assert "meson setup" in capsys.readouterr().err
