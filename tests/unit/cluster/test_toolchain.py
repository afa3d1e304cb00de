"""The cache's keys and places, and what is read out of go.mod files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster import golang, toolchain
from tests.cluster.errors import ToolchainError

FILES = {"go.mod": b"module m\n", "go.sum": b"", "tools.go": b"package tools\n"}
PIN = toolchain.Pin(folder="etcd", packages=("example.invalid/etcd",))


def test_the_key_is_stable_and_short() -> None:
    key = toolchain.cache_key(PIN, FILES)
    assert key == toolchain.cache_key(PIN, dict(reversed(FILES.items())))
    assert len(key) == 12
    assert int(key, 16) >= 0


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_key_changes_with_every_file(name: str) -> None:
    changed = {**FILES, name: FILES[name] + b"x"}
    assert toolchain.cache_key(PIN, changed) != toolchain.cache_key(PIN, FILES)


def test_the_key_changes_with_the_build_flags() -> None:
    keys = {
        toolchain.cache_key(pin, FILES)
        for pin in (PIN, replace(PIN, tags="t"), replace(PIN, ldflags=""), replace(PIN, cgo=True))
    }
    assert len(keys) == 4


def test_content_cannot_move_between_files_unnoticed() -> None:
    one = {"go.mod": b"ab", "go.sum": b"c"}
    other = {"go.mod": b"a", "go.sum": b"bc"}
    assert toolchain.cache_key(PIN, one) != toolchain.cache_key(PIN, other)


def test_the_cache_is_where_the_environment_says() -> None:
    assert toolchain.cache_root({"HAMI_DRA_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert toolchain.cache_root({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/hami-dra")
    assert toolchain.cache_root({"HOME": "/h"}) == Path("/h/.cache/hami-dra")


@pytest.mark.parametrize(
    "text", ["require k8s.io/kubernetes v1.37.1\n", "require (\n\tk8s.io/kubernetes v1.37.1\n)\n"]
)
def test_the_pinned_version_is_read_from_both_forms(text: str) -> None:
    assert toolchain.pinned_version(text, "k8s.io/kubernetes") == "v1.37.1"


def test_a_module_that_is_not_pinned_is_named() -> None:
    with pytest.raises(ToolchainError, match=r"k8s\.io/kubernetes"):
        toolchain.pinned_version("module m\n", "k8s.io/kubernetes")


def test_kubernetes_reports_the_pinned_version() -> None:
    flags = toolchain.kubernetes_ldflags("v1.37.1")
    assert "k8s.io/component-base/version.gitVersion=v1.37.1" in flags
    assert "k8s.io/component-base/version.gitMinor=37" in flags


def test_every_pin_has_its_files_and_a_sum() -> None:
    for pin in toolchain.pins():
        for name in ("go.mod", "go.sum", "tools.go"):
            assert (toolchain.PINS / pin.folder / name).read_text()
        tools = (toolchain.PINS / pin.folder / "tools.go").read_text()
        for package in pin.packages:
            assert f'"{package}"' in tools


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", (1, 26)),
        ("go version go1.27.3 linux/amd64", (1, 27)),
        ("go1.27rc1", (1, 27)),
        ("devel +abcdef", None),
        ("", None),
    ],
)
def test_go_versions_are_understood(text: str, version: tuple[int, int] | None) -> None:
    assert golang.parse_version(text) == version


def test_a_long_command_that_fails_shows_the_end_of_what_it_said(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ToolchainError, match=r"(?s)exit status 3.*the reason"):
        golang.run_long(
            ["sh", "-c", "echo the reason >&2; exit 3"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            title="step",
            say=said.append,
        )
    assert said == ["step: started"]
