"""The node's configuration file: HAMi's words, and nothing that has no effect."""

import json
from typing import Any

import pytest
import yaml

from hami_dra.contract.errors import UserError
from hami_dra.contract.healthconfig import HealthConfig
from hami_dra.contract.nodeconfig import (
    DEFAULT_NODE_CONFIG,
    DeviceFilter,
    ProfileList,
    decode_node_config,
)

HAMI = """
{"nodeconfig": [{
  "name": "node-1", "operatingmode": "hami-core", "devicememoryscaling": 1.8,
  "devicecorescaling": 2, "devicesplitcount": 5, "preconfigureddevicememory": 122880,
  "filterdevices": {"uuid": ["GPU-a"], "index": [0, 3]}}]}
"""


def test_hamis_node_configuration_is_understood_as_it_is() -> None:
    (entry,) = decode_node_config(json.loads(HAMI)).nodeconfig

    assert (entry.name, entry.operating_mode, entry.split_count) == ("node-1", "hami-core", 5)
    assert (entry.memory_scaling, entry.core_scaling) == (1.8, 2)
    assert entry.preconfigured_memory_mib == 122880
    assert entry.filter_devices == DeviceFilter(uuid=("GPU-a",), index=(0, 3))


def test_hamis_device_configuration_has_other_capitals_and_means_the_same() -> None:
    text = """
    nvidia: {deviceSplitCount: 4, deviceMemoryScaling: 1.5, preConfiguredDeviceMemory: 8}
    nodeConfig: [{Name: n, filterDevices: {UUID: [GPU-a], cel: ["true"]}}]
    """
    config = decode_node_config(yaml.safe_load(text))

    assert (config.nvidia.split_count, config.nvidia.memory_scaling) == (4, 1.5)
    assert config.nvidia.preconfigured_memory_mib == 8
    assert config.nodeconfig[0].filter_devices == DeviceFilter(uuid=("GPU-a",), cel=("true",))


def test_hamis_list_of_profiles_is_understood_as_it_is() -> None:
    text = """
    nvidia:
      migProfileAllowlist:
      - models: [A30]
        profiles: [1g.6gb, 2g.12gb, 4g.24gb]
    """
    (only,) = decode_node_config(yaml.safe_load(text)).nvidia.mig_profiles or ()
    assert only == ProfileList(models=("A30",), profiles=("1g.6gb", "2g.12gb", "4g.24gb"))


def test_an_empty_file_says_nothing() -> None:
    assert decode_node_config(None) == decode_node_config({}) == DEFAULT_NODE_CONFIG


def test_the_health_of_cards_is_configured_in_camel_case() -> None:
    config = decode_node_config(
        {"health": {"xids": {"fatal": [31], "others": "ignored"}, "fatalEffect": "NoExecute"}}
    )
    assert config.health.xids.fatal == (31,)
    assert config.health.fatal_effect == "NoExecute"
    assert config.health.quiet_seconds == HealthConfig().quiet_seconds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "Expected `object`"),
        ({"nvdia": {}}, "nvdia"),
        ({"nvidia": {"migStrategy": "none"}}, "migstrategy"),
        ({"nvidia": {"name": "n"}}, "name"),
        ({"nodeconfig": {}}, r"\$\.nodeconfig"),
        ({"nodeconfig": [{"devicesplitcount": 4}]}, "missing required field `name`"),
        ({"nodeconfig": [{"name": ""}]}, r"nodeconfig\[0\]\.name: '' is empty"),
        ({"nodeconfig": [{"name": "a"}, {"name": "a"}]}, r"nodeconfig\[1\]\.name: 'a'.*twice"),
        ({"nodeconfig": [{"name": "a", "operatingmode": "mps"}]}, "mps.*operatingmode"),
        ({"nvidia": {"devicesplitcount": 0}}, "nvidia.devicesplitcount: is 0; write a number from"),
        ({"nvidia": {"devicesplitcount": 1.5}}, "devicesplitcount"),
        ({"nvidia": {"devicesplitcount": True}}, "devicesplitcount"),
        ({"nvidia": {"devicesplitcount": 4, "deviceSplitCount": 5}}, "nvidia: .*twice"),
        ({"nvidia": {"devicememoryscaling": 0}}, "nvidia.devicememoryscaling: is 0"),
        ({"nvidia": {"devicememoryscaling": float("nan")}}, "devicememoryscaling: is nan"),
        ({"nvidia": {"devicecorescaling": float("inf")}}, "devicecorescaling: is inf"),
        ({"nvidia": {"preconfigureddevicememory": -1}}, "preconfigureddevicememory: is -1"),
        ({"nvidia": {"migProfileAllowlist": [{"models": ["A30"]}]}}, "field `profiles`"),
        (
            {"nvidia": {"migProfileAllowlist": [{"models": [""], "profiles": ["1g.6gb"]}]}},
            r"nvidia\.migprofileallowlist\[0\]: has an empty",
        ),
        ({"nvidia": {"memoryBackend": "mps"}}, "memorybackend"),
        ({"nvidia": {"mps": {}}}, "pipedirectory"),
        ({"nvidia": {"mps": {"pipeDirectory": "run"}}}, r"nvidia\.mps\.pipedirectory: is 'run'"),
        (
            {"nvidia": {"mps": {"pipeDirectory": "/a", "shmDirectory": "b"}}},
            r"nvidia\.mps\.shmdirectory: is 'b'",
        ),
        ({"nvidia": {"mps": {"pipeDirectory": "/a", "uuid": [""]}}}, r"nvidia\.mps\.uuid: has"),
        ({"nvidia": {"filterdevices": {"index": [-1]}}}, "nvidia.filterdevices.index: counts"),
        ({"nvidia": {"filterdevices": {"uuid": [""]}}}, "filterdevices.uuid: has an empty"),
        ({"nvidia": {"filterdevices": {"cel": ["true"] * 33}}}, "33 expressions"),
        ({"nvidia": {"filterdevices": {"minor": [1]}}}, "minor"),
        ({"health": {"xids": {"fatal": [0]}}}, "health.xids.fatal: 0 is not the number"),
        ({"health": {"xids": {"fatal": [31], "ignored": [31]}}}, "31 is in ignored as well"),
        ({"health": {"xids": {"others": "bad"}}}, "others"),
        ({"health": {"quietseconds": 4}}, "quietseconds"),
        ({"health": {"quietSeconds": -1}}, "health.quietSeconds: is -1"),
        ({"health": {"badLooks": 0}}, "health.badLooks: is 0"),
        ({"health": {"fatalEffect": "None"}}, "fatalEffect"),
        ({1: 2}, "is not a configuration of the node process"),
    ],
)
def test_what_cannot_be_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        decode_node_config(value)
