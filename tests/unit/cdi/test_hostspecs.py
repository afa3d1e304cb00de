"""CDI files of others, resolved as a container runtime resolves them."""

from pathlib import Path

import pytest

from hami_dra.cdi.hostspecs import HostDevice, HostSpecs

KIND = "nvidia.com/gpu"
TOOLKIT = """\
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, hostPath: /run/nvidia/driver/dev/nvidia0, major: 195, permissions: rw}
    - {path: /dev/dri/card1, fileMode: 432, gid: 44}
- name: GPU-1
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
containerEdits:
  env: [NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64]
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib64]
  mounts:
  - hostPath: /usr/lib64/libcuda.so.580.95.05
    containerPath: /usr/lib64/libcuda.so.580.95.05
    options: [ro, nosuid, nodev, rbind, rprivate]
"""


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Return the two directories that runtimes read, lower priority first."""
    low, high = tmp_path / "etc", tmp_path / "run"
    low.mkdir()
    high.mkdir()
    return low, high


def look(directories: tuple[Path, ...], *names: str) -> tuple[HostDevice | None, tuple[str, ...]]:
    specs = HostSpecs(directories, ignored_prefix="ours-")
    return specs.find_device(KIND, names), specs.problems


def test_a_device_has_its_own_edits_and_those_of_its_file(directories: tuple[Path, Path]) -> None:
    (directories[0] / "nvidia.yaml").write_text(TOOLKIT)

    found, problems = look(directories, "GPU-1")

    assert found is not None
    assert found.id == "nvidia.com/gpu=GPU-1"
    assert found.paths == (
        "/dev/nvidia0",
        "/usr/lib64/libcuda.so.580.95.05",
        "/usr/bin/nvidia-cdi-hook",
        "/dev/nvidiactl",
    )
    assert [node.path for node in found.nodes] == ["/dev/nvidia0"]
    assert problems == ()
    by_index, _ = look(directories, "GPU-2", "0")
    assert by_index is not None
    assert by_index.nodes[0].host_path == "/run/nvidia/driver/dev/nvidia0"


def test_the_first_name_that_is_defined_counts(directories: tuple[Path, Path]) -> None:
    (directories[0] / "nvidia.yaml").write_text(TOOLKIT)

    found, _ = look(directories, "GPU-1", "0")

    assert found is not None
    assert found.id.endswith("=GPU-1")
    assert look(directories, "GPU-9", "9")[0] is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("new.yaml", TOOLKIT.replace("0.5.0", "9.0.0"), "unknown cdiVersion '9.0.0'"),
        ("field.yaml", TOOLKIT + "surprise: 1\n", "unknown field `surprise`"),
        ("deep.yaml", TOOLKIT.replace("gid: 44", "colour: red"), "unknown field `colour`"),
        ("type.yaml", TOOLKIT.replace("[NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64]", "5"), "Expected"),
        ("broken.yaml", "{", "while parsing"),
        ("list.json", "[]", "Expected `object`"),
        ("empty.json", "", "truncated"),
        ("bytes.yaml", "\udcff", "decode"),
    ],
)
def test_a_file_that_a_runtime_refuses_defines_nothing(
    directories: tuple[Path, Path], name: str, content: str, reason: str
) -> None:
    path = directories[1] / name
    path.write_bytes(content.encode(errors="surrogateescape"))

    found, problems = look(directories, "GPU-1", "0")

    assert found is None
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert reason in problems[0]


def test_the_later_directory_wins(directories: tuple[Path, Path]) -> None:
    (directories[0] / "nvidia.yaml").write_text(TOOLKIT)
    (directories[1] / "fresh.yaml").write_text(TOOLKIT.replace("/dev/nvidia0", "/dev/nvidia3"))

    found, problems = look(directories, "GPU-1")

    assert found is not None
    assert found.nodes[0].path == "/dev/nvidia3"
    assert problems == ()


def test_a_name_that_two_files_of_a_directory_define_is_nobodys(
    directories: tuple[Path, Path],
) -> None:
    (directories[0] / "a.yaml").write_text(TOOLKIT)
    (directories[0] / "b.yaml").write_text(TOOLKIT.replace("name: GPU-1", "name: GPU-2"))

    assert look(directories, "0")[0] is None
    assert look(directories, "GPU-1")[0] is not None
    _, problems = look(directories, "0")
    assert "a.yaml and" in problems[0]
    (directories[1] / "c.yaml").write_text(TOOLKIT)
    assert look(directories, "0")[0] is None, "as in the Go library, whatever has priority"


def test_what_is_not_a_specification_is_not_read(directories: tuple[Path, Path]) -> None:
    (directories[1] / "ours-x.json").write_text('{"kind": "nvidia.com/gpu"}')
    (directories[1] / "notes.txt").write_text(TOOLKIT)
    (directories[1] / "nvidia.yaml.tmp").write_text(TOOLKIT)

    assert look((*directories, directories[0] / "absent"), "GPU-1") == (None, ())


def test_a_changed_file_is_read_again(directories: tuple[Path, Path]) -> None:
    path = directories[0] / "nvidia.yaml"
    path.write_text(TOOLKIT)
    specs = HostSpecs(directories, ignored_prefix="ours-")

    assert specs.find_device(KIND, ["GPU-1"]) is not None
    path.write_text(TOOLKIT.replace("GPU-1", "GPU-12"))
    assert specs.find_device(KIND, ["GPU-1"]) is None
    assert specs.find_device(KIND, ["GPU-12"]) is not None
    path.unlink()
    assert specs.find_device(KIND, ["GPU-12"]) is None
