"""Images are the same bytes for the same input, and hold what an image has to hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster import images, rootfs
from tests.cluster.errors import ClusterError
from tests.cluster.images import Image
from tests.cluster.rootfs import Member

LDD = """\
\tlinux-vdso.so.1 (0x00007ffc)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f2)
"""


@pytest.fixture
def build(tmp_path: Path) -> Path:
    (tmp_path / "probe").mkdir()
    for name in ("pause", *images.PROBES):
        (tmp_path / "probe" / name).write_bytes(name.encode())
    return tmp_path


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        streams = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


def layer_of(path: Path) -> tarfile.TarFile:
    files = read(path)
    digest = json.loads(files["index.json"])["manifests"][0]["digest"].split(":")[1]
    manifest = json.loads(files[f"blobs/sha256/{digest}"])
    layer = files[f"blobs/sha256/{manifest['layers'][0]['digest'].split(':')[1]}"]
    return tarfile.open(fileobj=io.BytesIO(layer))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    members = (Member(path="b", content=b"2"), Member(path="a"), Member(path="c", link="b"))
    one = Image(reference="local/x:1", members=members)
    other = Image(reference="local/x:1", members=members[::-1])
    first = images.write_layout(one, tmp_path / "one.tar").read_bytes()
    assert images.write_layout(other, tmp_path / "other.tar").read_bytes() == first


def test_the_index_names_the_image(build: Path, tmp_path: Path) -> None:
    path = images.write_layout(images.pause_image(build), tmp_path / "pause.tar")
    index = json.loads(read(path)["index.json"])
    annotations = index["manifests"][0]["annotations"]
    assert annotations == {"io.containerd.image.name": "docker.io/local/pause:1"}
    with layer_of(path) as layer:
        assert layer.getnames() == ["pause"]
        assert layer.getmember("pause").mode == 0o755


def test_the_test_image_has_a_shell_libc_and_the_probes(build: Path, tmp_path: Path) -> None:
    path = images.write_layout(images.cuda_test_image(build), tmp_path / "cuda-test.tar")
    with layer_of(path) as layer:
        names = layer.getnames()
        assert {"usr/bin/sh", "usr/bin/cat", "usr/local/bin/cuprobe", "etc/passwd"} <= set(names)
        assert any(Path(name).name == "libc.so.6" for name in names)
        assert not any("libcuda" in name for name in names)
        assert layer.getmember("bin").linkname == "usr/bin"
        assert layer.getmember("tmp").mode == 0o1777
        assert {member.mtime for member in layer.getmembers()} == {0}


def test_a_program_that_is_not_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="probe/pause does not exist"):
        images.pause_image(tmp_path)


def test_ldd_gives_libraries_and_the_loader() -> None:
    expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
    assert rootfs.parse_ldd(LDD) == expected


def test_every_parent_folder_is_a_member() -> None:
    members = {m.path for m in rootfs.lay_out({"opt/a/b/c": b""}, ["usr/lib/x"])}
    assert {"opt", "opt/a", "opt/a/b", "usr", "usr/local"} <= members
    assert "." not in members
