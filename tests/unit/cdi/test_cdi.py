"""CDI files: their content, and that they are whole or not there."""

from pathlib import Path

import msgspec
import pytest

from hami_dra.cdi.spec import DeviceNode, Edits, Mount, render_spec
from hami_dra.cdi.store import CdiStore

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


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        (Mount("/a", "/b"), "ro nosuid nodev rbind rprivate"),
        (Mount("/a", "/b", executable=False), "ro nosuid nodev noexec rbind rprivate"),
        (Mount("/a", "/b", read_only=False), "rw nosuid rbind rprivate"),
        (
            Mount("/a", "/b", read_only=False, private_data=True),
            "rw nosuid nodev noexec rbind rprivate",
        ),
    ],
)
def test_mounts_allow_no_more_than_they_are_for(mount: Mount, options: str) -> None:
    assert mount.render()["options"] == options.split()


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
