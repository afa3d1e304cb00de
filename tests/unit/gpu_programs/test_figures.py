"""Shares, their errors, and how values spread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.figures import Spread, judge_share, split_ratio


def test_a_share_is_percent_of_what_the_card_can_do() -> None:
    accuracy = judge_share([40.0, 60.0, 50.0], 100.0, 45.0)

    assert accuracy.share == pytest.approx(50.0)
    assert accuracy.error == pytest.approx(5.0)
    assert accuracy.wander == pytest.approx((5 + 15 + 5) / 3)


@pytest.mark.parametrize(("done", "full"), [([], 1.0), ([1.0], 0.0), ([1.0], -1.0)])
def test_a_share_of_nothing_is_none(done: list[float], full: float) -> None:
    with pytest.raises(ValueError, match="needs windows"):
        judge_share(done, full, 50.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.floats(0.1, 1e6), st.floats(1, 99))
def test_the_mean_distance_is_no_less_than_the_error(
    done: list[float], full: float, expected: float
) -> None:
    accuracy = judge_share(done, full, expected)

    assert accuracy.wander >= abs(accuracy.error) - 1e-6 * max(1.0, accuracy.share)


def test_a_split_is_the_first_ones_part() -> None:
    assert split_ratio(0.3, 0.6) == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="neither"):
        split_ratio(0.0, 0.0)


def test_a_spread_is_written_with_its_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).text() == "2.0 (1.0 to 3.0)"
    assert Spread.of([2.0]).text(0) == "2"
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])
