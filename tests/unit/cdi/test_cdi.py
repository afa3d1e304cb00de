"""CDI files: their content, and that they are whole or not there."""

from pathlib import Path

import msgspec
import pytest

from hami_dra.cdi.driverfiles import DriverRoot, find_card_edits, find_common_edits, find_libraries
from hami_dra.cdi.hostspecs import HostSpecs
from hami_dra.cdi.spec import DeviceNode, Edits, Mount, render_spec
from hami_dra.cdi.store import CdiStore
from hami_dra.contract.errors import RetryError

KIND = "gpu.example.com/card"
NODE = DeviceNode("/dev/nvidia0", "/dev/nvidia0", 195, 0)
MOVED = DeviceNode("/driver/dev/nvidia0", "/dev/nvidia0", 195, 0)


@pytest.mark.parametrize(
    ("name", "node", "version"),
    [
        ("gpu-0", NODE, "0.3.0"),
        ("0-gpu", NODE, "0.5.0"),
        ("gpu-0", MOVED, "0.5.0"),
    ],
)
def test_the_version_is_the_lowest_that_covers_the_content(
    name: str, node: DeviceNode, version: str
) -> None:
    assert render_spec(KIND, [(name, Edits(nodes=(node,)))])["cdiVersion"] == version


def test_edits_are_rendered_as_cdi_names_them() -> None:
    edits = Edits(
        mounts=(Mount("/a", "/b"),), nodes=(MOVED,), environment=(("NAME", "a=b"), ("X", ""))
    )

    assert render_spec(KIND, [("gpu", edits)], Edits(mounts=(Mount("/c", "/d"),))) == {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": [
            {
                "name": "gpu",
                "containerEdits": {
                    "env": ["NAME=a=b", "X="],
                    "deviceNodes": [
                        {
                            "path": "/dev/nvidia0",
                            "hostPath": "/driver/dev/nvidia0",
                            "type": "c",
                            "major": 195,
                            "minor": 0,
                            "permissions": "rw",
                        }
                    ],
                    "mounts": [
                        {
                            "hostPath": "/a",
                            "containerPath": "/b",
                            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                        }
                    ],
                },
            }
        ],
        "containerEdits": {
            "mounts": [
                {
                    "hostPath": "/c",
                    "containerPath": "/d",
                    "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                }
            ]
        },
    }


@pytest.mark.parametrize(
    "devices",
    [
        [],
        [("a", Edits())],
        [("a", Edits(nodes=(NODE,))), ("a", Edits(nodes=(NODE,)))],
    ],
)
def test_a_specification_that_a_runtime_would_refuse_is_not_rendered(
    devices: list[tuple[str, Edits]],
) -> None:
    with pytest.raises(ValueError, match=KIND):
        render_spec(KIND, devices)


def test_a_file_is_written_once_and_found_again(tmp_path: Path) -> None:
    store = CdiStore(tmp_path / "cdi", prefix="ours-")

    assert store.write("ours-a", {"kind": KIND})
    assert not store.write("ours-a", {"kind": KIND})
    assert store.write("ours-a", {"kind": "other"})
    assert store.names() == ["ours-a"]
    assert msgspec.json.decode((tmp_path / "cdi" / "ours-a.json").read_bytes()) == {"kind": "other"}
    store.remove("ours-a")
    store.remove("ours-a")
    assert store.names() == []
    assert list((tmp_path / "cdi").iterdir()) == []


def test_files_of_others_are_not_ours_to_touch(tmp_path: Path) -> None:
    store = CdiStore(tmp_path, prefix="ours-")
    (tmp_path / "nvidia.json").write_text("{}")

    assert store.names() == []
    with pytest.raises(ValueError, match="not one of our"):
        store.remove("nvidia")
    with pytest.raises(ValueError, match="not one of our"):
        store.write("ours-../x", {})


def lay_out(root: Path, directory: str, version: str = "580.95.05") -> DriverRoot:
    (root / directory).mkdir(parents=True)
    for stem in ("libcuda", "libnvidia-ml"):
        (root / directory / f"{stem}.so.{version}").write_bytes(b"")
        (root / directory / f"{stem}.so.1").symlink_to(f"{stem}.so.{version}")
    (root / directory / "libc.so.6").write_bytes(b"")
    return DriverRoot(root, Path("/host"))


@pytest.mark.parametrize("directory", ["usr/lib/x86_64-linux-gnu", "usr/lib64", "lib"])
def test_libraries_are_found_where_distributions_keep_them(tmp_path: Path, directory: str) -> None:
    root = lay_out(tmp_path, directory)

    mounts = find_libraries(root, "580.95.05")

    assert {mount.host_path for mount in mounts} == {
        f"/host/{directory}/libcuda.so.580.95.05",
        f"/host/{directory}/libnvidia-ml.so.580.95.05",
    }
    assert {mount.container_path for mount in mounts if "64-" not in mount.container_path} == {
        f"/usr/lib64/{name}"
        for name in (
            "libcuda.so.1",
            "libcuda.so.580.95.05",
            "libnvidia-ml.so.1",
            "libnvidia-ml.so.580.95.05",
        )
    }


def test_absolute_links_are_followed_below_the_root(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "usr/lib64")
    link = tmp_path / "usr" / "lib64" / "libcuda.so.1"
    link.unlink()
    link.symlink_to("/etc/alternatives/libcuda")
    (tmp_path / "etc" / "alternatives").mkdir(parents=True)
    (tmp_path / "etc" / "alternatives" / "libcuda").symlink_to("/usr/lib64/libcuda.so.580.95.05")

    mounts = {m.container_path: m.host_path for m in find_libraries(root, "580.95.05")}

    assert mounts["/usr/lib64/libcuda.so.1"] == "/host/usr/lib64/libcuda.so.580.95.05"


def test_libraries_of_another_driver_version_do_not_count(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "usr/lib64", version="570.1.1")

    with pytest.raises(RetryError, match=r"580\.95\.05"):
        find_libraries(root, "580.95.05")


def test_device_nodes_are_those_that_exist(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "usr/lib64")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl"):
        (tmp_path / "dev" / name).symlink_to("/dev/null")
    (tmp_path / "dev" / "nvidia-uvm").write_text("a plain file is no device")

    common = find_common_edits(root, "580.95.05")

    assert [node.container_path for node in common.nodes] == ["/dev/nvidiactl"]
    assert find_card_edits(root, 0).nodes[0].host_path == "/host/dev/nvidia0"
    with pytest.raises(RetryError, match="dev/nvidia7 is not a character device"):
        find_card_edits(root, 7)


def test_devices_of_others_are_found_whatever_lies_beside_them(tmp_path: Path) -> None:
    low, high = tmp_path / "etc", tmp_path / "run"
    low.mkdir()
    high.mkdir()
    (low / "broken.yaml").write_text("{")
    (low / "list.json").write_text("[]")
    (low / "notes.txt").write_text("x")
    (high / "ours-x.json").write_text('{"kind": "nvidia.com/gpu", "devices": [{"name": "GPU-1"}]}')
    (low / "nvidia.yaml").write_text(
        "kind: nvidia.com/gpu\n"
        "devices: [{name: GPU-1, containerEdits: {deviceNodes: [{path: /dev/nvidia0}]}}]\n"
        "containerEdits: {mounts: [{hostPath: /lib/x}], hooks: [{path: /usr/bin/hook}]}\n"
    )
    specs = HostSpecs((low, high, tmp_path / "absent"), ignored_prefix="ours-")

    assert specs.find_paths("nvidia.com/gpu", "GPU-1") == [
        "/dev/nvidia0",
        "/lib/x",
        "/usr/bin/hook",
    ]
    assert specs.find_paths("nvidia.com/gpu", "GPU-2") is None
    (low / "nvidia.yaml").unlink()
    assert specs.find_paths("nvidia.com/gpu", "GPU-1") is None
