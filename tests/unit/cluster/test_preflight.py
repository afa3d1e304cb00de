"""What preflight says about machines that lack something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.cluster import preflight
from tests.cluster.preflight import Machine

GOOD = Machine(
    uid=lambda: 0,
    python=(3, 11),
    which=lambda program: f"/usr/bin/{program}",
    succeeds=lambda _script: True,
    free_mib=lambda _path: 100_000,
    cgroup_problem=lambda: None,
    openssl_major=lambda: 3,
    compiler=lambda: "cc",
    venv=lambda: True,
    go=lambda: True,
    libseccomp=lambda: True,
)


def lines(machine: Machine, unbuilt: list[str]) -> list[str]:
    problems = preflight.check(Path("/base"), Path("/cache"), unbuilt, machine)
    return [str(problem) for problem in problems]


def test_a_complete_machine_has_no_problem() -> None:
    assert lines(GOOD, ["runc", "kubernetes"]) == []


def test_everything_missing_is_said_at_once_in_one_line_each() -> None:
    bare = Machine(
        uid=lambda: 1000,
        python=(3, 9),
        which=lambda _program: None,
        succeeds=lambda _script: False,
        free_mib=lambda _path: 10,
        cgroup_problem=lambda: "no cgroup controller memory",
        openssl_major=lambda: 1,
        compiler=lambda: None,
        venv=lambda: False,
        go=lambda: False,
        libseccomp=lambda: False,
    )
    said = lines(bare, ["runc"])
    assert all("\n" not in line for line in said)
    for word in ("root", "3.9", "unshare", "openssl", "memory", "compiler", "Go 1.26", "10 MiB"):
        assert any(word in line for line in said), word


def test_a_kernel_without_overlayfs_is_named() -> None:
    machine = replace(GOOD, succeeds=lambda script: "overlay" not in script)
    assert [line.split(":")[0] for line in lines(machine, [])] == ["no overlayfs"]


def test_without_namespaces_nothing_else_of_the_kernel_is_tried() -> None:
    machine = replace(GOOD, succeeds=lambda _script: False)
    assert [line.split(":")[0] for line in lines(machine, [])] == ["no new namespaces"]


def test_go_and_room_for_it_are_needed_only_for_building() -> None:
    machine = replace(GOOD, go=lambda: False, free_mib=lambda _path: 2 * 1024)
    assert lines(machine, []) == []
    assert len(lines(machine, ["etcd"])) == 2


def test_compiler_and_venv_are_always_needed() -> None:
    machine = replace(GOOD, compiler=lambda: None, venv=lambda: False)
    assert [line.split(":")[0] for line in lines(machine, [])] == [
        "no Python environments",
        "no C compiler",
    ]
