"""The configuration file is decoded strictly, and the message names the key."""

from pathlib import Path
from typing import Any

import pytest

from hami_dra.cli.configfile import read_settings
from hami_dra.contract.errors import FatalError, UserError
from hami_dra.contract.settings import DEFAULT_SETTINGS, decode_settings


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    assert read_settings(file) == read_settings(None) == DEFAULT_SETTINGS
    assert decode_settings({"nvidia": {}}) == DEFAULT_SETTINGS


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"nvidia": {"defaultGPUNum": 0, "overwriteEnv": true}}')
    nvidia = read_settings(file).nvidia
    assert (nvidia.default_gpu_num, nvidia.overwrite_env) == (0, True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"nvidia": {"defaultMem": 1}}, "unknown field `defaultMem` - at `$.nvidia`"),
        ({"nvidia": {"deviceSplitCount": 10}}, "unknown field `deviceSplitCount`"),
        ({"cambricon": {}}, "unknown field `cambricon`"),
        ({"nvidia": {"defaultMemory": "1"}}, "Expected `int`"),
        ({"nvidia": {"defaultMemory": -1}}, "nvidia.defaultMemory: is -1; write a number from 0"),
        ({"nvidia": {"defaultCores": 101}}, "from 0 to 100"),
        ({"nvidia": {"defaultGPUNum": 33}}, "nvidia.defaultGPUNum: is 33"),
        ({"nvidia": {"memoryFactor": 0}}, "nvidia.memoryFactor: is 0; write a number from 1"),
        ({"nvidia": {"gpuCorePolicy": "often"}}, "Invalid enum value 'often'"),
        ({"nvidia": {"resourceCountName": "gpu"}}, "'gpu' is no name of an extended resource"),
        ({"nvidia": {"resourceCountName": 'a.b/x"'}}, "is no name of an extended resource"),
        ({"nvidia": {"resourceCountName": "nvidia.com/gpumem"}}, "is the name of two resources"),
        ([], "Expected `object`"),
    ],
)
def test_what_cannot_be_meant_is_refused(value: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        decode_settings(value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "nvidia: {x: 1}", "!!python/object:os.system {}"])
def test_a_bad_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(FatalError, match=r"configuration .*config\.yaml: "):
        read_settings(file)
