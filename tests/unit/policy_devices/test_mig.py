"""Placements and counters: the scheduler may give out exactly what the driver can make."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hami_dra.policy.devices import GpuFacts, name_device
from hami_dra.policy.mig import (
    Instance,
    Part,
    Profile,
    consume,
    count_totals,
    order_starts,
    overlap,
)
from hami_dra.policy.migdevices import (
    describe_counter_sets,
    describe_mig_device,
    is_dynamic,
    list_mig_devices,
    name_placement,
)
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakemig import A30_PROFILES, A100_PROFILES, divide

CARD = make_gpu(0)
PART = Part(number=0, uuid="MIG-0123", slices=3, multiprocessors=42)
SMALL = Part(number=1, uuid="MIG-4567", slices=1, multiprocessors=14)


def everybody(*_: object) -> bool:
    return True


def nobody(*_: object) -> bool:
    return False


def placements(profiles: tuple[Profile, ...]) -> list[tuple[Profile, int]]:
    return [(profile, start) for profile in profiles for start in profile.starts]


def driver_allows(chosen: list[tuple[Profile, int]]) -> bool:
    """Return what a driver that knows places and numbers of instances would say."""
    apart = all(
        not overlap(a[1], a[0].size, b[1], b[0].size)
        for i, a in enumerate(chosen)
        for b in chosen[i + 1 :]
    )
    counted = Counter(profile.name for profile, _ in chosen)
    media = sum(count for name, count in counted.items() if name.endswith("+me"))
    return apart and media <= 1 and all(counted[p.name] <= p.instances for p, _ in chosen)


def counters_allow(profiles: tuple[Profile, ...], chosen: list[tuple[Profile, int]]) -> bool:
    totals = Counter(count_totals(profiles))
    for profile, start in chosen:
        totals.subtract(consume(profile, start))
    return min(totals.values()) >= 0


@pytest.mark.parametrize("profiles", [A100_PROFILES, A30_PROFILES], ids=["A100", "A30"])
@given(data=st.data())
def test_counters_allow_what_the_driver_allows(
    profiles: tuple[Profile, ...], data: st.DataObject
) -> None:
    pool = placements(profiles)
    chosen: list[tuple[Profile, int]] = []
    for candidate in data.draw(st.lists(st.sampled_from(pool), max_size=12)):
        allowed = driver_allows([*chosen, candidate])
        assert counters_allow(profiles, [*chosen, candidate]) == allowed
        if allowed:
            chosen.append(candidate)


def test_places_come_in_an_order_that_keeps_the_large_ones_free() -> None:
    by_name = {profile.name: order_starts(profile, A100_PROFILES) for profile in A100_PROFILES}
    assert by_name["1g.5gb"] == [6, 5, 4, 3, 2, 1, 0]
    assert by_name["2g.10gb"] == [4, 2, 0]
    assert by_name["3g.20gb"] == [4, 0]


def test_a_dynamic_card_is_every_placement_and_no_card() -> None:
    gpu = divide(CARD)
    devices = [describe_mig_device(d) for d in list_mig_devices([gpu], {"all"}, everybody)]
    (counters,) = describe_counter_sets([gpu], {"all"}, everybody)
    assert len(devices) == 7 + 7 + 4 + 3 + 2 + 1 + 1
    assert counters["name"] == name_device(CARD.uuid)
    assert counters["counters"]["compute-slices"] == {"value": "7"}
    assert set(counters["counters"]) == {
        "compute-slices", "copy-engines", "decoders", "jpeg-engines", "ofa-engines",
        *(f"memory-slice-{index}" for index in range(8)),
    }  # fmt: skip
    first = devices[0]
    assert first["name"] == f"{name_device(CARD.uuid)}-1g-5gb-6"
    assert "allowMultipleAllocations" not in first
    assert {k: v for k, v in first["attributes"].items() if k in {"type", "uuid", "profile"}} == {
        "type": {"string": "hami-mig"},
        "uuid": {"string": f"{CARD.uuid}/1g.5gb@6"},
        "profile": {"string": "1g.5gb"},
    }
    assert first["attributes"]["parentUUID"] == {"string": CARD.uuid}
    assert first["attributes"]["productName"] == {"string": CARD.product_name}
    assert first["capacity"] == {
        "memory": {"value": "4864Mi"},
        "cores": {"value": "15"},
        "slots": {"value": "1"},
    }
    assert first["consumesCounters"] == [
        {
            "counterSet": counters["name"],
            "counters": {
                "memory-slice-6": {"value": "1"},
                "compute-slices": {"value": "1"},
                "copy-engines": {"value": "1"},
            },
        }
    ]


def test_what_exists_on_a_static_card_is_published_as_it_is() -> None:
    gpu = divide(
        CARD,
        Instance(number=2, profile=9, start=4, size=4, slices=3, parts=(PART,)),
        Instance(number=1, profile=9, start=0, size=4, slices=3, parts=(SMALL,)),
        Instance(number=7, profile=19, start=6, size=1, slices=1),
    )
    devices = [describe_mig_device(d) for d in list_mig_devices([gpu], (), everybody)]
    assert [(d["name"], d["attributes"]["profile"]["string"]) for d in devices] == [
        ("gpu-mig-4567", "1c.3g.20gb"),
        ("gpu-mig-0123", "3g.20gb"),
    ]
    assert [d["capacity"]["cores"]["value"] for d in devices] == ["15", "43"]
    assert all("consumesCounters" not in d for d in devices)
    assert describe_counter_sets([gpu], (), everybody) == []
    assert list_mig_devices([gpu], (), nobody) == [], "what we made for a claim is the claim's"


def test_instances_of_others_take_their_places_and_counters_away() -> None:
    other = Instance(number=2, profile=9, start=4, size=4, slices=3, parts=(PART,))
    gpu = divide(CARD, other)
    names = {d.name.partition(f"{name_device(CARD.uuid)}-")[2] for d in
             list_mig_devices([gpu], {"0"}, everybody)}  # fmt: skip
    assert "3g-20gb-0" in names
    assert names.isdisjoint({"3g-20gb-4", "7g-40gb-0", "1g-5gb-4", "1g-10gb-6"})
    (counters,) = describe_counter_sets([gpu], {"0"}, everybody)
    left = {name: int(counter["value"]) for name, counter in counters["counters"].items()}
    assert (left["memory-slice-3"], left["memory-slice-4"]) == (1, 0)
    assert left["compute-slices"] == 4
    ours = describe_counter_sets([gpu], {"0"}, nobody)
    assert ours == describe_counter_sets([divide(CARD)], {"0"}, everybody)


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [((), False), (("all",), True), (("0",), True), (("1",), False), ((CARD.uuid,), True)],
)
def test_cards_are_chosen_by_uuid_index_or_all(chosen: tuple[str, ...], *, wanted: bool) -> None:
    assert is_dynamic(divide(CARD), chosen) == wanted
    assert not is_dynamic(CARD, chosen), "a card that cannot be divided"


@given(
    profile=st.from_regex(r"[1-7]g\.[1-9][0-9]{0,2}gb([+-]me(\.all)?|\+gfx)?", fullmatch=True),
    start=st.integers(0, 15),
)
def test_names_of_placements_are_labels_and_unlike(profile: str, start: int) -> None:
    name = name_placement("GPU-a1000000-5157-4a2b-9c3d-0123456789ab", profile, start)
    assert len(name) <= 63
    assert name.replace("-", "").isalnum()
    assert name[0].isalnum()
    assert name[-1].isalnum()
    other = profile.replace("+", "-") if "+" in profile else f"{profile}+me"
    assert name != name_placement("GPU-a1000000-5157-4a2b-9c3d-0123456789ab", other, start)


def test_sixteen_cards_stay_within_the_limits_of_the_api() -> None:
    gpus: list[GpuFacts] = [divide(make_gpu(number)) for number in range(16)]
    devices: list[dict[str, Any]] = [
        describe_mig_device(d) for d in list_mig_devices(gpus, {"all"}, everybody)
    ]
    sets = describe_counter_sets(gpus, {"all"}, everybody)
    assert len({d["name"] for d in devices}) == len(devices) == 16 * 25
    assert len(sets) == 16
    assert all(len(group["counters"]) <= 32 for group in sets)
    assert all(len(d["attributes"]) + len(d["capacity"]) <= 32 for d in devices)
    assert all(len(v.get("string", "")) <= 64 for d in devices for v in d["attributes"].values())


def test_counters_suffice_where_no_profile_takes_the_whole_card() -> None:
    profiles = tuple(profile for profile in A100_PROFILES if profile.name != "7g.40gb")
    quarters = next(profile for profile in profiles if profile.name == "2g.10gb")
    assert counters_allow(profiles, [(quarters, start) for start in quarters.starts])
