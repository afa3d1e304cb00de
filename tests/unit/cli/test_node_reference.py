"""docs/reference/node.md says everything that can be set, and its example is one."""

import re
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from hami_dra.cli.node import node
from hami_dra.contract.healthconfig import FATAL_XIDS, IGNORED_XIDS, HealthConfig, XidTable
from hami_dra.contract.nodeconfig import (
    CardConfig,
    DeviceFilter,
    MpsConfig,
    NodeEntry,
    decode_node_config,
)
from hami_dra.policy.cardrules import find_bad_expression

PAGE = (Path(__file__).resolve().parents[3] / "docs/reference/node.md").read_text()


@pytest.mark.parametrize(
    "option", [each for each in node.params if isinstance(each, click.Option)], ids=str
)
def test_every_option_is_on_the_page_with_its_variable(option: click.Option) -> None:
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{option.opts[0]}` |"))
    assert all(f"`{variable}`" in row for variable in variables)
    if isinstance(option.default, Path | int | float):
        assert re.search(rf"\| `?{re.escape(f'{option.default}').removesuffix('.0')}`? \|", row)


@pytest.mark.parametrize(
    ("struct", "prefix"),
    [
        (CardConfig, ""),
        (NodeEntry, ""),
        (DeviceFilter, "filterdevices."),
        (MpsConfig, "mps."),
        (HealthConfig, "health."),
        (XidTable, "health.xids."),
    ],
)
def test_every_field_is_on_the_page(struct: type[msgspec.Struct], prefix: str) -> None:
    for field in msgspec.structs.fields(struct):
        has_rows = field.encode_name in {"filterdevices", "mps"}
        if not isinstance(field.default, msgspec.Struct) and not has_rows:
            assert f"| `{prefix}{field.encode_name}` |" in PAGE


@pytest.mark.parametrize(("name", "numbers"), [("ignored", IGNORED_XIDS), ("fatal", FATAL_XIDS)])
def test_the_default_lists_are_on_the_page(name: str, numbers: tuple[int, ...]) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `health.xids.{name}` |"))
    assert tuple(map(int, re.findall(r"\d+", row))) == numbers


def test_the_examples_are_configurations() -> None:
    example, mps = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    config = decode_node_config(yaml.safe_load(example))
    assert find_bad_expression(config) is None
    assert config.nodeconfig[0].memory_scaling == 1.5
    assert decode_node_config(yaml.safe_load(mps)).nvidia.mps is not None
