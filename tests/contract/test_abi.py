"""The Python mirrors of libvgpu's files agree with the C headers, and survive any bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.contract import grant, region

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HAMI_DRA_BUILD_DIR", REPOSITORY / "build/libvgpu"))
UUID = "GPU-a1000000-5157-4a2b-9c3d-0123456789ab"
GRANT = grant.Grant(
    claim_uid="0f6c1e9a-claim",
    request="gpu",
    devices=(
        grant.GrantDevice(UUID, 3000 << 20, 30, share_id="share-1"),
        grant.GrantDevice("GPU-b", 0, 0, control_disabled=True, spill=True, mps=True),
        grant.GrantDevice(
            "GPU-c",
            0,
            50,
            core_policy="force",
            priority=0,
            alone=True,
            ceiling_percent=90,
            burst_ms=5,
        ),
    ),
    sequence=8,
)


@pytest.fixture(scope="module")
def layout() -> dict[str, dict[str, int]]:
    """What the compiler says of the C structs."""
    program = BUILD / "tests/abi-dump"
    if not program.exists():
        pytest.fail(f"{program} is not built: meson setup build/libvgpu libvgpu, meson compile")
    output = subprocess.run([program], check=True, capture_output=True).stdout  # noqa: S603
    structs: dict[str, dict[str, int]] = json.loads(output)
    return structs


def test_grant_layout_is_the_headers(layout: dict[str, dict[str, int]]) -> None:
    assert layout["vgpu_grant"] == {"size": grant.FILE_SIZE, **grant.HEADER_OFFSETS}
    assert layout["vgpu_grant_device"] == {"size": grant.DEVICE_SIZE, **grant.DEVICE_OFFSETS}
    assert grant.HEADER_OFFSETS["devices"] == grant.HEADER_SIZE


def test_region_layout_is_the_headers(layout: dict[str, dict[str, int]]) -> None:
    assert layout["vgpu_region_header"] == {"size": region.HEADER_SIZE, **region.HEADER_OFFSETS}
    assert layout["vgpu_region_device"] == {"size": region.DEVICE_SIZE, **region.DEVICE_OFFSETS}
    assert layout["vgpu_region_slot"] == {"size": region.SLOT_SIZE, **region.SLOT_OFFSETS}
    assert layout["vgpu_region"] == {
        "size": region.FILE_SIZE,
        "header": 0,
        "devices": region.DEVICES_OFFSET,
        "slots": region.SLOTS_OFFSET,
    }


def test_encoded_fields_are_at_their_offsets() -> None:
    data = grant.encode_grant(GRANT)
    header, device = grant.HEADER_OFFSETS, grant.DEVICE_OFFSETS
    assert len(data) == grant.FILE_SIZE
    assert data[header["sequence"] : header["sequence"] + 8] == (8).to_bytes(8, "little")
    assert data[header["request"] : header["request"] + 4] == b"gpu\0"
    first = grant.HEADER_SIZE
    limit = first + device["memory_limit_bytes"]
    assert data[limit : limit + 8] == (3000 << 20).to_bytes(8, "little")
    assert data[first + device["share_id"] :].startswith(b"share-1\0")


def test_grant_survives_a_round_trip() -> None:
    assert grant.decode_grant(grant.encode_grant(GRANT)) == GRANT


@given(st.lists(st.booleans(), min_size=1, max_size=4), st.lists(st.booleans(), max_size=5))
def test_who_is_alone_is_read_without_the_rest(alone: list[bool], asked: list[bool]) -> None:
    devices = tuple(replace(GRANT.devices[0], alone=value) for value in alone)
    data = grant.encode_grant(replace(GRANT, devices=devices))
    assert grant.says_alone(data, asked) == (asked == alone)
    assert grant.says_alone(data, alone)
    assert not grant.says_alone(data[:100], asked)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (grant.Grant("u", "r", ()), "devices: 0"),
        (grant.Grant("u", "r", GRANT.devices * 11), "devices: 33"),
        (grant.Grant("u" * 64, "r", GRANT.devices), "claim_uid .* is 64 bytes"),
        (grant.Grant("u", "r\0", GRANT.devices), "request .* NUL"),
        (grant.Grant("u", "r", (grant.GrantDevice(UUID, -1, 0),)), "memory_limit_bytes is -1"),
        (grant.Grant("u", "r", (grant.GrantDevice(UUID, 0, 101),)), "cores_percent is 101"),
    ],
)
def test_grant_that_does_not_fit_is_refused_by_field(bad: grant.Grant, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grant.encode_grant(bad)


def _region_made_by_libvgpu(
    tmp_path: Path, *, card_mib: int = 40960, limit_mib: int = 3000, spill: bool = False
) -> bytes:
    for name in ("sim", "dev", "grants/uid_gpu/region"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "sim/cards.ini").write_text(
        f"[card]\nuuid = {UUID}\nname = card\nmemory_mib = {card_mib}\npci = 0000:3b:00.0\n"
    )
    device = grant.GrantDevice(UUID, limit_mib << 20, 30, spill=spill)
    one = grant.Grant("uid", "gpu", (device,))
    (tmp_path / "grants/uid_gpu/grant").write_bytes(grant.encode_grant(one))
    subprocess.run(  # noqa: S603 - built here
        [BUILD / "probe/cuprobe", "alloc", "1000", "2500"],
        check=True,
        capture_output=True,
        env={
            "LD_LIBRARY_PATH": str(BUILD / "sim"),
            "LD_PRELOAD": str(BUILD / "src/libvgpu-test.so"),
            "VGPU_SIM_DIR": str(tmp_path / "sim"),
            "VGPU_SIM_DEV": str(tmp_path / "dev"),
            "VGPU_GRANT_ROOT": str(tmp_path / "grants"),
        },
    )
    return (tmp_path / "grants/uid_gpu/region/region").read_bytes()


def test_region_written_by_libvgpu_is_read(tmp_path: Path) -> None:
    view = region.decode_region(_region_made_by_libvgpu(tmp_path))
    (device,) = view.devices
    assert device.uuid == UUID
    assert device.limit_bytes == 3000 << 20
    assert device.used_bytes == 1000 << 20
    assert device.oom_count == 1
    (process,) = view.processes
    assert process.used_bytes == (1000 << 20,)
    assert process.spilled_bytes == (0,)
    assert device.spill_count == 0


def test_what_spilled_is_read(tmp_path: Path) -> None:
    raw = _region_made_by_libvgpu(tmp_path, card_mib=2000, limit_mib=4000, spill=True)
    view = region.decode_region(raw)
    (device,), (process,) = view.devices, view.processes
    assert device.used_bytes == process.used_bytes[0] == 3500 << 20
    assert device.spilled_bytes == process.spilled_bytes[0] == 2500 << 20
    assert (device.spill_count, device.oom_count, device.driver_oom_count) == (1, 0, 0)


def test_no_bytes_make_a_decoder_fail_otherwise(tmp_path: Path) -> None:
    chance = random.Random(20261120)  # noqa: S311 - not for secrets
    good_region = _region_made_by_libvgpu(tmp_path)
    good_grant = grant.encode_grant(GRANT)
    for _round in range(150):
        for good, decode in ((good_region, region.decode_region), (good_grant, grant.decode_grant)):
            data = bytearray(good)
            for _flip in range(chance.randrange(1, 30)):
                top = 600 if chance.random() < 0.7 else len(data)
                data[chance.randrange(top)] = chance.randrange(256)
            if chance.random() < 0.1:
                del data[chance.randrange(len(data)) :]
            with contextlib.suppress(ValueError):
                decode(bytes(data))
