"""What cards had no room for is told of the shares that may be oversubscribed, and of no others."""

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from hami_dra.contract import region
from hami_dra.contract.grant import Grant, GrantDevice, encode_grant
from hami_dra.node.sharedir import ShareDirectories
from hami_dra.node.spillmetrics import SpillMetrics

MIB = 1 << 20
CARD = "GPU-a1000000-5157-4a2b-9c3d-0123456789ab"
OTHER = "GPU-b1000000-5157-4a2b-9c3d-0123456789ab"


def make_region(*uuids: str, spilled: dict[int, int], spills: int = 0) -> bytes:
    """A region with one process; `spilled` by device."""
    data = bytearray(region.FILE_SIZE)

    def put(offset: int, value: int, size: int) -> None:
        data[offset : offset + size] = value.to_bytes(size, "little")

    header = region.HEADER_OFFSETS
    data[: len(region.MAGIC)] = region.MAGIC
    put(header["abi_major"], region.ABI_MAJOR, 2)
    put(header["file_size"], region.FILE_SIZE, 4)
    put(header["header_size"], region.HEADER_SIZE, 4)
    put(header["device_size"], region.DEVICE_SIZE, 4)
    put(header["slot_size"], region.SLOT_SIZE, 4)
    put(header["slot_count"], region.SLOT_COUNT, 4)
    put(header["device_count"], len(uuids), 4)
    for index, uuid in enumerate(uuids):
        start = region.DEVICES_OFFSET + index * region.DEVICE_SIZE
        data[start : start + len(uuid)] = uuid.encode()
        put(start + region.DEVICE_OFFSETS["spill_count"], spills, 8)
    slot = region.slot_lock_offset(3)
    put(slot + region.SLOT_OFFSETS["state"], region.SLOT_LIVE, 4)
    for index, bytes_ in spilled.items():
        place = region.MAX_DEVICES - 1 - index
        put(slot + region.SLOT_OFFSETS["used_bytes"] + 8 * place, bytes_, 8)
    return bytes(data)


def put_share(state: Path, uid: str, *, spill: bool, content: bytes | None) -> None:
    share = state / "claims" / uid / "gpu"
    (share / "region").mkdir(parents=True)
    devices = (GrantDevice(CARD, 3000 * MIB, 0, spill=spill), GrantDevice(OTHER, 0, 0))
    (share / "grant").write_bytes(encode_grant(Grant(uid, "gpu", devices)))
    if content is not None:
        (share / "region" / "region").write_bytes(content)


def scrape(state: Path) -> list[str]:
    registry = CollectorRegistry()
    registry.register(SpillMetrics(ShareDirectories(state)))
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_each_card_of_an_oversubscribed_share_is_told(tmp_path: Path) -> None:
    content = make_region(CARD, OTHER, spilled={0: 700 * MIB, 1: 5}, spills=9)
    put_share(tmp_path, "one", spill=True, content=content)

    assert scrape(tmp_path) == [
        f'hami_dra_share_spilled_bytes{{claim_uid="one",request="gpu",uuid="{CARD}"}} 7.340032e+08',
        f'hami_dra_share_spilled_bytes{{claim_uid="one",request="gpu",uuid="{OTHER}"}} 5.0',
        f'hami_dra_share_spills_total{{claim_uid="one",request="gpu",uuid="{CARD}"}} 9.0',
        f'hami_dra_share_spills_total{{claim_uid="one",request="gpu",uuid="{OTHER}"}} 9.0',
    ]


def test_other_shares_and_broken_regions_are_not(tmp_path: Path) -> None:
    put_share(tmp_path, "plain", spill=False, content=make_region(CARD, spilled={0: 1}))
    put_share(tmp_path, "fresh", spill=True, content=None)
    put_share(tmp_path, "broken", spill=True, content=b"not a region")
    (tmp_path / "claims" / "empty").mkdir()
    (tmp_path / "claims" / "empty" / "record.json").write_text("{}")

    assert scrape(tmp_path) == []


def test_a_region_of_many_cards_says_nothing_of_it() -> None:
    many = tuple(f"GPU-{index}" for index in range(region.SPILL_DEVICES + 1))
    view = region.decode_region(make_region(*many, spilled={0: 1}))

    assert {device.spilled_bytes for device in view.devices} == {0}
