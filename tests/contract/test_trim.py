"""The node's part of the compute controller is the one that was measured with libvgpu's."""

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.trim import HIGHEST, LOWEST, UNCHANGED, step_trim

LIBVGPU = Path(__file__).resolve().parents[2] / "libvgpu"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """``compute_trim.c`` alone."""
    target = tmp_path_factory.mktemp("trim") / "trim.so"
    source = LIBVGPU / "src/compute_trim.c"
    include = LIBVGPU / "include"
    subprocess.run(  # noqa: S603 - our own source
        ["cc", "-std=gnu11", "-shared", "-fPIC", "-I", include, "-o", target, source],  # noqa: S607
        check=True,
    )
    return ctypes.CDLL(str(target))


permille = st.integers(0, 1000) | st.integers(995, 1005)


@given(
    trim=st.integers(0, 5000) | st.integers(LOWEST, HIGHEST),
    limit=permille | st.integers(1, 20),
    observed=permille,
    throttled=permille | st.integers(95, 105),
    others=permille | st.integers(15, 25),
)
def test_both_say_the_same(library: ctypes.CDLL, trim: int, **facts: int) -> None:
    theirs = library.vgpu_trim_step(
        trim, facts["limit"], facts["observed"], facts["throttled"], facts["others"]
    )

    assert step_trim(trim, **facts) == theirs


@given(st.integers(20, 980), st.integers(1, 10))
def test_a_share_that_is_measured_too_long_gets_its_part_in_the_end(
    limit: int, longer: int
) -> None:
    """Every kernel looks `longer` times as long as it is, because others run in between."""
    trim, observed = UNCHANGED, 0
    for _ in range(60):
        charged = longer * trim
        observed = min(limit * 1000 // charged, 1000)
        trim = step_trim(trim, limit=limit, observed=observed, throttled=900, others=100)

    assert abs(observed - limit) <= max(6, limit * 0.01)
