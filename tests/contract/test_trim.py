"""The node's part of the compute controller is the one that was measured with libvgpu's."""

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.trim import UNCHANGED, Trim, TrimReading, step_trim

LIBVGPU = Path(__file__).resolve().parents[2] / "libvgpu"


class CTrimReading(ctypes.Structure):
    """``struct vgpu_trim_reading``."""

    _fields_ = (
        ("limit", ctypes.c_uint32),
        ("observed", ctypes.c_uint32),
        ("others", ctypes.c_uint32),
        ("charged_us", ctypes.c_int32),
        ("long_us", ctypes.c_int32),
        ("owes", ctypes.c_bool),
    )


class CTrim(ctypes.Structure):
    """``struct vgpu_trim``."""

    _fields_ = (
        ("permille", ctypes.c_uint32),
        ("phase", ctypes.c_uint32),
        ("observed_us", ctypes.c_int64),
        ("short_us", ctypes.c_int64),
        ("untrimmed_us", ctypes.c_int64),
    )


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
charge = st.just(0) | st.integers(-500_000, 2_000_000) | st.integers(-(2**31), 2**31 - 1)
reading = st.builds(
    TrimReading,
    limit=st.just(300) | permille,
    observed=permille | st.integers(0, 2**32 - 1),
    others=st.just(500) | permille | st.integers(15, 25),
    charged_us=charge,
    long_us=charge,
    owes=st.booleans(),
)


@given(st.lists(reading, max_size=30))
def test_both_say_the_same(library: ctypes.CDLL, readings: list[TrimReading]) -> None:
    ours, theirs = Trim(), CTrim()
    for now in readings:
        ours = step_trim(ours, now)
        facts = CTrimReading(
            now.limit, now.observed, now.others, now.charged_us, now.long_us, now.owes
        )
        library.vgpu_trim_step(ctypes.byref(theirs), ctypes.byref(facts))

        assert ours.permille == theirs.permille
        assert ours.phase == theirs.phase
        assert ours.observed_us == theirs.observed_us
        assert (ours.short_us, ours.untrimmed_us) == (theirs.short_us, theirs.untrimmed_us)


@given(st.integers(100, 980), st.integers(1, 9))
def test_a_share_that_is_measured_too_long_gets_its_part_within_seconds(
    limit: int, longer: int
) -> None:
    """Every kernel looks `longer` times as long as it is, because others run in between."""
    trim, observed = Trim(), 0
    for _ in range(12):
        observed = min(limit * UNCHANGED // (longer * trim.permille), 1000)
        charged_us = observed * longer * trim.permille
        now = TrimReading(
            limit, observed, others=100, charged_us=charged_us, long_us=charged_us, owes=True
        )
        trim = step_trim(trim, now)

    assert abs(observed - limit) <= max(6, limit * 0.01)
