"""Text in CEL expressions."""

import json

from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.selectors import memory_at_least, quote


@given(st.text())
def test_quoted_text_is_one_literal_that_says_the_same(text: str) -> None:
    literal = quote(text)
    assert json.loads(literal) == text
    assert '"' not in literal[1:-1].replace("\\\\", "").replace('\\"', "")
    assert not any("\ud800" <= c <= "\udfff" for c in json.loads(literal))


def test_lone_surrogates_cannot_travel() -> None:
    assert quote("a\ud800b").encode() == b'"a?b"'


def test_memory_is_compared_as_a_quantity() -> None:
    assert memory_at_least(4096) == (
        'device.capacity["hami-core-gpu.project-hami.io"].memory.compareTo(quantity("4Gi")) >= 0'
    )
