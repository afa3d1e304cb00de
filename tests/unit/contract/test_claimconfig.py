"""Opaque configuration is decoded strictly, and the message names the field."""

import pytest

from hami_dra.contract.claimconfig import decode_share_config, encode_share_config
from hami_dra.contract.errors import UserError

KIND = {"apiVersion": "gpu.project-hami.io/v1alpha1", "kind": "ShareConfig"}


def test_round_trip() -> None:
    config = decode_share_config({**KIND, "memoryLimitMiB": 3000}, field="x")

    assert config.memory_limit_mib == 3000
    assert encode_share_config(config) == {**KIND, "memoryLimitMiB": 3000}


def test_every_field_travels() -> None:
    everything = {
        **KIND,
        "memoryLimitPercent": 50,
        "priority": 0,
        "corePolicy": "force",
        "coreCeilingPercent": 60,
        "coreBurstMs": 25,
        "disableControl": True,
        "oversubscription": True,
        "computeBackend": "mps",
    }
    config = decode_share_config(everything, field="x")

    assert (config.memory_limit_percent, config.priority, config.core_policy) == (50, 0, "force")
    assert (config.core_ceiling_percent, config.core_burst_ms) == (60, 25)
    assert config.disable_control
    assert config.oversubscription
    assert config.compute_backend == "mps"
    assert encode_share_config(config) == everything
    assert encode_share_config(decode_share_config(KIND, field="x")) == KIND


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({**KIND, "memoryLimitPercent": 0}, "memoryLimitPercent: must be from 1 to 100, got 0"),
        ({**KIND, "memoryLimitPercent": 101}, "must be from 1 to 100, got 101"),
        ({**KIND, "memoryLimitPercent": 50, "memoryLimitMiB": 1}, "write one of them"),
        ({**KIND, "priority": -1}, "parameters.priority: must be from 0"),
        ({**KIND, "priority": 2**31}, "got 2147483648"),
        ({**KIND, "priority": "0"}, "Expected `int | null`"),
        ({**KIND, "corePolicy": "FORCE"}, "Invalid enum value 'FORCE'"),
        ({**KIND, "coreCeilingPercent": 0}, "coreCeilingPercent: must be from 1 to 100, got 0"),
        ({**KIND, "coreCeilingPercent": 101}, "must be from 1 to 100, got 101"),
        ({**KIND, "coreCeilingPercent": 50.5}, "Expected `int | null`"),
        (
            {**KIND, "coreCeilingPercent": 50, "corePolicy": "disable"},
            "coreCeilingPercent: raises a limit that corePolicy: disable takes away",
        ),
        ({**KIND, "coreBurstMs": 0}, "coreBurstMs: must be from 1 to 1000, got 0"),
        ({**KIND, "coreBurstMs": 1001}, "got 1001"),
        ({**KIND, "disableControl": 1}, "Expected `bool`"),
        ({**KIND, "memoryLimitMib": 1}, "unknown field `memoryLimitMib`"),
        ({**KIND, "memoryLimitMiB": "1"}, "Expected `int | null`"),
        ({**KIND, "memoryLimitMiB": 0}, "at least 1 MiB"),
        ({**KIND, "oversubscription": "yes"}, "Expected `bool`"),
        ({**KIND, "computeBackend": "green"}, "computeBackend"),
        ({"kind": "ShareConfig"}, "missing required field `apiVersion`"),
        ({**KIND, "kind": "GpuConfig"}, "Invalid enum value 'GpuConfig'"),
        (["a"], "Expected `object`"),
        (None, "Expected `object`"),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters: object, words: str) -> None:
    with pytest.raises(
        UserError, match=r"spec\.devices\.config\[0\]\.opaque\.parameters"
    ) as caught:
        decode_share_config(parameters, field="spec.devices.config[0].opaque.parameters")

    assert words in str(caught.value)
