"""How many examples a law is tried with: few at every change, many at night."""

import os
from typing import Final, TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

EXAMPLES: Final = int(os.environ.get("HAMI_DRA_EXAMPLES", "2000"))
"""``make test-nightly`` says 100000."""
_MANY: Final = 10_000

Value = TypeVar("Value")


def budget(share: float = 1.0) -> settings:
    """Return hypothesis settings for a share of the examples.

    The many examples of a night differ from those of the night before; what fails is printed.
    """
    many = EXAMPLES >= _MANY
    return settings(
        max_examples=max(1, int(EXAMPLES * share)),
        derandomize=not many,
        print_blob=many,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def sample(strategy: st.SearchStrategy[Value], count: int, *, number: int = 0) -> list[Value]:
    """Return ``count`` examples (fewer if there are no more), the same for the same ``number``."""
    found: list[Value] = []

    @seed(number)
    @settings(budget(), max_examples=count, derandomize=False)
    @given(strategy)
    def collect(value: Value) -> None:
        found.append(value)

    collect()
    return found
