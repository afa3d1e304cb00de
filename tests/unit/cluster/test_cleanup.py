"""Cleaning finds exactly what belongs to a cluster, and refuses anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import cgroups, cleanup
from tests.cluster.errors import ClusterError
from tests.cluster.wire import Component, Plan

MOUNTINFO = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
30 20 0:25 / /tmp/hdc-a/x rw - tmpfs private rw
31 30 0:26 / /tmp/hdc-a/x/in\\040side rw - overlay overlay rw
32 20 0:27 / /tmp/hdc-ab rw - tmpfs other rw
40 20 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
41 20 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
42 20 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
43 20 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_mounts_are_found_innermost_first_and_only_below() -> None:
    found = cleanup.mounts_below(Path("/tmp/hdc-a"), MOUNTINFO)  # noqa: S108 - a name, not a file
    assert found == [Path("/tmp/hdc-a/x/in side"), Path("/tmp/hdc-a/x")]  # noqa: S108 - as above


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount() -> None:
    assert cleanup.filesystem_of(Path("/tmp/hdc-a/x/y"), MOUNTINFO) == "tmpfs"  # noqa: S108 - a name
    assert cleanup.filesystem_of(Path("/home"), MOUNTINFO) == "ext4"


def test_only_a_clusters_directory_is_removed(tmp_path: Path) -> None:
    assert cleanup.remove_directory(tmp_path) == [f"{tmp_path} is not a cluster's directory"]
    assert tmp_path.is_dir()


def test_a_directory_is_removed_with_its_content_unless_it_is_to_be_kept(tmp_path: Path) -> None:
    directory = tmp_path / "hdc-x"
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "keep").touch()
    assert cleanup.remove_directory(directory) == []
    assert directory.is_dir()
    (directory / "keep").unlink()
    assert cleanup.remove_directory(directory) == []
    assert not directory.exists()


def test_hierarchies_of_both_versions_are_read() -> None:
    found = {h.mount.name: h for h in cgroups.parse_mountinfo(MOUNTINFO)}
    assert set(found) == {"cpu,cpuacct", "memory", "pids", "unified"}
    assert found["cpu,cpuacct"].controllers == {"cpu", "cpuacct"}
    assert found["unified"].unified
    assert cgroups.unusable(found.values()) is None


def test_a_missing_controller_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    only = [cgroups.Hierarchy(tmp_path, frozenset(), unified=True)]
    assert cgroups.unusable(only) == "no cgroup controller memory"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_name_that_is_not_a_clusters_is_refused(name: str) -> None:
    with pytest.raises(ClusterError):
        cgroups.remove(name)


def test_a_plan_survives_json() -> None:
    plan = Plan(
        directory="/d",
        cgroup="d",
        hosts_name="node-1",
        lifeline=True,
        relays={"/d/api.sock": ("127.0.0.1", 6443)},
        components=(
            Component(name="a", argv=("x",), env={"K": "v"}, after=("b",), ready="exited"),
        ),
    )
    assert Plan.from_json(plan.to_json()) == plan
