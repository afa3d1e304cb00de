"""What is applied is what was meant, whatever a person wrote into an annotation."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.kube.yamlbody import encode_for_yaml


@pytest.mark.parametrize(
    "unsafe", ["\x7f", "\x80", "\x85", "\x9f", "\u2028", "\u2029", "\ufffe", "\ufeff"]
)
def test_characters_that_yaml_reads_otherwise_are_escaped(unsafe: str) -> None:
    encoded = encode_for_yaml({"a": f"x{unsafe}y"})
    assert f"\\u{ord(unsafe):04x}".encode() in encoded
    assert json.loads(encoded) == {"a": f"x{unsafe}y"}


def test_what_everybody_writes_is_left_as_it_is() -> None:
    assert encode_for_yaml({"a": "straße 日本 😀"}) == '{"a":"straße 日本 😀"}'.encode()


@given(st.dictionaries(st.text(), st.text()))
def test_json_and_yaml_read_the_same(body: dict[str, str]) -> None:
    encoded = encode_for_yaml(body)
    assert json.loads(encoded) == body
    assert yaml.load(encoded, yaml.CSafeLoader) == body
