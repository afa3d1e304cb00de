"""Region files are written by tenants; reading one must not be a way to hurt the node."""

import os
from pathlib import Path

import pytest

from hami_dra.monitor.region import read_region


def test_before_a_program_has_run_there_is_none(tmp_path: Path) -> None:
    assert read_region(tmp_path) is None


def test_what_is_no_region_is_said(tmp_path: Path) -> None:
    (tmp_path / "region").write_bytes(b"not a region")

    with pytest.raises(ValueError, match="region"):
        read_region(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "region").symlink_to("/etc/passwd")

    with pytest.raises(OSError, match="symbolic link"):
        read_region(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "region")

    with pytest.raises(ValueError, match="plain file"):
        read_region(tmp_path)
