"""The configuration file while the process runs."""

import os
from pathlib import Path

import pytest

from hami_dra.contract.errors import FatalError
from hami_dra.contract.nodeconfig import DEFAULT_NODE_CONFIG, NodeConfig
from hami_dra.node.configfile import ConfigFile, ConfigStatistics


class ConfigMap:
    """A directory as kubelet mounts a ConfigMap: the file is a link through a link that swaps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._version = 0
        (directory / "config.yaml").symlink_to("..data/config.yaml")

    def write(self, text: str) -> Path:
        """Swap the content, as kubelet does."""
        self._version += 1
        version = self._directory / f"..{self._version}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        (self._directory / "..data_tmp").symlink_to(version.name)
        (self._directory / "..data_tmp").rename(self._directory / "..data")
        return self._directory / "config.yaml"


def test_without_a_file_the_defaults_hold() -> None:
    assert ConfigFile(None).read() == DEFAULT_NODE_CONFIG


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nvidia: {devicesplitcount: 0}", "config.yaml: nvidia.devicesplitcount: is 0"),
        ("nvidia: {colour: red}", "colour"),
        ("{", "neither YAML nor JSON"),
        ("nvidia: {filterdevices: {cel: ['device.']}}", r"nvidia.filterdevices.cel\[0\]"),
        ("#" * (1 << 20) + "#", "larger than"),
        ("nvidia: &a {filterdevices: *a}", "filterdevices"),
    ],
)
def test_a_start_with_a_bad_file_fails_by_name(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FatalError, match=words):
        ConfigFile(ConfigMap(tmp_path).write(text)).read()


def test_a_start_without_the_file_fails(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="cannot be read"):
        ConfigFile(tmp_path / "none").read()


async def test_changes_are_told_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    told: list[NodeConfig] = []
    mounted = ConfigMap(tmp_path)
    file = ConfigFile(mounted.write("nvidia: {devicesplitcount: 4}"))
    assert file.read().nvidia.split_count == 4
    await file.look(told.append)
    assert told == []

    mounted.write("nvidia: {devicesplitcount: 5}")
    await file.look(told.append)
    assert [config.nvidia.split_count for config in told] == [5]

    mounted.write("nvidia: {devicesplitcount: -5}")
    await file.look(told.append)
    assert file.statistics() == ConfigStatistics(accepted=1, refused=1, current=False)

    (tmp_path / "config.yaml").unlink()
    await file.look(told.append)
    assert file.statistics() == ConfigStatistics(accepted=1, refused=2, current=False)
    await file.look(told.append)
    assert file.statistics().refused == 2

    (tmp_path / "config.yaml").write_text("# the same\nnvidia: {devicesplitcount: 5}")
    await file.look(told.append)
    assert file.statistics() == ConfigStatistics(accepted=2, refused=2, current=True)
    assert len(told) == 1


async def test_a_file_written_in_place_is_noticed(tmp_path: Path) -> None:
    told: list[NodeConfig] = []
    path = tmp_path / "config.json"
    path.write_text('{"nvidia": {"devicesplitcount": 4}}')
    file = ConfigFile(path)
    file.read()
    path.write_text('{"nvidia": {"devicesplitcount": 6}}')
    os.utime(path, ns=(1, 1))
    await file.look(told.append)
    assert [config.nvidia.split_count for config in told] == [6]
