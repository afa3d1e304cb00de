"""Instances made for claims: whatever happens in between, each has one owner or is gone."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hami_dra.contract.errors import HamiDraError
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.migmode import MigModes
from hami_dra.node.partitions import MIG_PREPARE_STEPS, MIG_UNPREPARE_STEPS
from hami_dra.node.preparer import PREPARE_STEPS, UNPREPARE_STEPS
from hami_dra.policy.devices import name_device
from hami_dra.policy.metadata import decode_metadata
from hami_dra.policy.mig import Part
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakemig import divide
from tests.unit.node.cuts import PowerCut, cut_after
from tests.unit.node.dividedcard import CARD, OTHERS, DividedCard, make_part
from tests.unit.node.rig import NODE, Rig, make_claim, make_share, put_claim, start_rig


@pytest.fixture
def card(tmp_path: Path) -> DividedCard:
    """The card that the node divides."""
    return DividedCard(tmp_path)


@asynccontextmanager
async def start(
    base: Path, cluster: FakeCluster, card: DividedCard, *, seen: bool = True, **changes: Any
) -> AsyncIterator[Rig]:
    """Begin a life of the node that divides a card, and let it look at it."""
    options: dict[str, Any] = {
        "control": card,
        "mig_dynamic": ("0",),
        "procfs": card.procfs,
    } | changes
    async with start_rig(base, cluster, **options) as rig:
        if seen:
            card.show_to(rig)
        yield rig


@asynccontextmanager
async def resume(
    base: Path, cluster: FakeCluster, card: DividedCard, **changes: Any
) -> AsyncIterator[Rig]:
    """Begin the next one: with what a start does before the first call can arrive."""
    async with start(base, cluster, card, seen=False, **changes) as rig:
        await rig.recovery.start()
        await rig.partitions.refresh()
        card.show_to(rig)
        yield rig


async def refuse(rig: Rig, ref: ClaimRef) -> str:
    with pytest.raises(HamiDraError) as caught:
        await rig.preparer.prepare(ref)
    return f"{type(caught.value).__name__}: {caught.value}"


async def test_a_claim_has_exactly_its_instance_and_the_rights_to_it(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        (device,) = await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[rig.claim_files()[0]]
        (instance,) = card.cards[CARD.uuid]
        assert (instance.start, instance.size, instance.profile) == (4, 4, 9)
        assert len(instance.parts) == 1
        assert device.cdi_ids[1] == f"hami-core-gpu.project-hami.io/card={name_device(CARD.uuid)}"
        assert spec["devices"][0]["containerEdits"] == {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "deviceNodes": [
                {
                    "path": f"/dev/nvidia-caps/nvidia-cap{minor}",
                    "type": "c",
                    "major": 237,
                    "minor": minor,
                    "permissions": "rw",
                }
                for minor in (80, 81)
            ],
        }
        assert await rig.preparer.prepare(ref) == (device,)
        assert card.places == [(4, 4)]
        await rig.preparer.unprepare(ref)
        await rig.preparer.unprepare(ref)
    assert card.places == []
    assert card.ended == [(CARD.uuid, 8)]


STEPS = PREPARE_STEPS + MIG_PREPARE_STEPS


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_in_prepare_is_finished_by_the_next_one(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, step: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card, step=cut_after(step)) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    async with resume(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        assert card.places == [(4, 4)]
        (record,) = await rig.ledger.records()
        assert record.ready
        assert record.binding.devices[0].mig is not None
        assert record.binding.devices[0].mig.uuid == card.cards[CARD.uuid][0].parts[0].uuid
        await rig.preparer.unprepare(ref)
        assert card.places == []


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_in_prepare_of_a_pod_that_never_returns_leaks_no_instance(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, step: str
) -> None:
    card.put(CARD.uuid, OTHERS)
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card, step=cut_after(step)) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    async with resume(tmp_path, cluster, card) as rig:
        # After "ledger-ready" the kubelet may have been told, so it will call Unprepare.
        ours = [(4, 4)] if step == "ledger-ready" else []
        assert card.places == [(0, 4), *ours]
        assert bool(await rig.ledger.records()) == bool(ours)


@pytest.mark.parametrize("step", UNPREPARE_STEPS + MIG_UNPREPARE_STEPS)
async def test_a_crash_in_unprepare_is_finished_by_the_next_one(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, step: str
) -> None:
    card.put(CARD.uuid, OTHERS)
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card, step=cut_after(step)) as rig:
        await rig.preparer.prepare(ref)
        with pytest.raises(PowerCut):
            await rig.preparer.unprepare(ref)
    async with resume(tmp_path, cluster, card) as rig:
        await rig.preparer.unprepare(ref)
        assert card.places == [(0, 4)]
        assert rig.claim_files() == []
        assert await rig.ledger.records() == []


@pytest.mark.parametrize("what", ["same place and profile", "overlapping"])
async def test_a_place_that_somebody_else_took_is_refused_and_left_alone(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, what: str
) -> None:
    start_at = 0 if what == "overlapping" else 4
    others = replace(OTHERS, start=start_at, size=8 if what == "overlapping" else 4, number=5)
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        card.put(CARD.uuid, others)
        for _ in range(2):
            text = await refuse(rig, ref)
            assert "this program has not made it" in text
            assert "MIG instance 5" in text
        assert await rig.ledger.records() == []
        await rig.preparer.unprepare(ref)
        card.show_to(rig)
        assert "is gone from this node" in await refuse(rig, ref)
    async with resume(tmp_path, cluster, card):
        assert card.cards[CARD.uuid] == (others,)


@pytest.mark.parametrize("fault", ["fault", "part_fault"])
async def test_an_instance_that_cannot_be_made_leaves_no_claim_to_its_place(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, fault: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        setattr(card, fault, "Insufficient Resources")
        assert "Insufficient Resources" in await refuse(rig, ref)
        setattr(card, fault, None)
        assert card.places == []
        assert await rig.ledger.records() == []
        card.put(CARD.uuid, replace(OTHERS, start=4, number=2))
        assert "has not made it" in await refuse(rig, ref)
        card.reboot()
        await rig.preparer.prepare(ref)
        assert card.places == [(4, 4)]


async def test_an_instance_in_use_stays_with_its_claim_until_it_is_free(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        card.used = {8}
        with pytest.raises(HamiDraError, match="In use"):
            await rig.preparer.unprepare(ref)
        assert len(await rig.ledger.records()) == 1
        card.used = set()
        await rig.preparer.unprepare(ref)
    assert card.places == []


async def test_after_a_reboot_the_instance_is_made_again_and_nothing_is_ours(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    gone = await put_claim(cluster, make_claim("gone", make_part("3g.20gb", 0)))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        await rig.preparer.prepare(gone)
    card.reboot()
    card.put(CARD.uuid, OTHERS)
    await cluster.remove(CLAIMS, "gone", namespace="team")
    async with resume(tmp_path, cluster, card, boot_id="boot-2") as rig:
        await rig.recovery.sweep()
        assert card.places == [(0, 4)], "an instance of this boot at the place of an old claim"
        await rig.preparer.prepare(ref)
        assert card.places == [(0, 4), (4, 4)]
        await rig.preparer.unprepare(ref)
        assert card.cards[CARD.uuid] == (OTHERS,)


async def test_a_lost_ledger_loses_no_instance(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    gone = await put_claim(cluster, make_claim("gone", make_part("3g.20gb", 0)))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        await rig.preparer.prepare(gone)
    for path in (tmp_path / "state").glob("ledger.db*"):
        path.unlink()
    next((tmp_path / "cdi").glob(f"*{gone.uid}*")).unlink()
    async with resume(tmp_path, cluster, card) as rig:
        assert card.places == [(4, 4)], "without its CDI file no container was ever started"
        await rig.preparer.unprepare(ref)
    assert card.places == []


async def test_an_intent_whose_claim_is_gone_is_undone_once_the_driver_answers(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card, step=cut_after("mig-part")) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    await cluster.remove(CLAIMS, "job", namespace="team")
    card.fault = "NVML does not initialise"
    async with resume(tmp_path, cluster, card) as rig:
        assert card.places == [(4, 4)]
        card.fault = None
        await rig.recovery.sweep()
        assert card.places == []
        assert await rig.ledger.records() == []


async def test_overlapping_placements_and_shares_of_the_card_are_refused(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    first = await put_claim(cluster, make_claim("first", make_part()))
    second = await put_claim(cluster, make_claim("second", make_part("1g.5gb", 5)))
    share = await put_claim(cluster, make_claim("share", make_share()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(first)
        card.reboot()  # the driver would not refuse it now; the ledger does
        assert first.uid in await refuse(rig, second)
        assert "is in MIG mode now" in await refuse(rig, share)
        rig.gpus[name_device(CARD.uuid)] = CARD
        assert "cannot exist on one card together" in await refuse(rig, share)


async def test_a_card_is_switched_when_nobody_has_a_share_of_it(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    share = await put_claim(cluster, make_claim("share", make_share()))
    async with start(tmp_path, cluster, card) as rig:
        rig.gpus[name_device(CARD.uuid)] = divide(CARD, enabled=False)

        def look() -> None:
            card.show_to(rig)

        modes = MigModes(rig.partitions, rig.ledger, gpus=lambda: rig.gpus, look=look)
        await rig.preparer.prepare(share)
        assert await modes.switch()
        assert card.modes == {}
        await rig.preparer.unprepare(share)
        assert not await modes.switch()
        assert card.modes == {CARD.uuid: True}
        assert "is in MIG mode now" in await refuse(rig, share)


async def test_a_share_that_comes_while_a_card_is_switched_is_refused(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    share = await put_claim(cluster, make_claim("share", make_share()))
    async with start(tmp_path, cluster, card) as rig:
        rig.gpus[name_device(CARD.uuid)] = divide(CARD, enabled=False)
        with rig.partitions.switching([CARD.uuid]):
            assert "just been switched" in await refuse(rig, share)
        assert await rig.ledger.records() == []
        await rig.preparer.prepare(share)


async def test_what_has_ended_is_not_taken_for_somebody_elses(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        stale = divide(CARD, *card.cards[CARD.uuid], read_at=1.0)
        (instance,) = card.cards[CARD.uuid]
        assert not rig.partitions.is_foreign(stale, instance)
        await rig.preparer.unprepare(ref)
        assert not rig.partitions.is_foreign(stale, instance), "looked at before it ended"
        later = divide(CARD, instance, read_at=1e12)
        assert rig.partitions.is_foreign(later, instance), "seen after it ended"


async def test_who_only_looks_makes_no_instance(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    watch = await put_claim(cluster, make_claim("watch", make_part(adminAccess=True)))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(watch)
        assert card.places == []
        assert NODE in {d.pool for r in await rig.ledger.records() for d in r.binding.devices}


async def test_one_at_our_place_that_is_not_what_we_made_is_somebody_elses(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        card.reboot()  # somebody ended it by hand, in this boot, and made one there
        theirs = replace(OTHERS, start=4, number=8)
        card.put(CARD.uuid, theirs)
        await rig.preparer.unprepare(ref)
        assert card.cards[CARD.uuid] == (theirs,)


async def test_two_instances_of_the_plugin_know_what_the_other_has_made(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    beside = await put_claim(cluster, make_claim("beside", make_part("1g.5gb", 5)))
    async with (
        start(tmp_path, cluster, card) as old,
        start(tmp_path, cluster, card) as new,
    ):
        await old.preparer.prepare(ref)
        card.show_to(new)
        gpu = new.gpus[name_device(CARD.uuid)]
        (instance,) = card.cards[CARD.uuid]
        assert new.partitions.is_foreign(gpu, instance), "nobody has told it yet"
        assert await new.partitions.refresh()
        assert not new.partitions.is_foreign(gpu, instance)
        assert not await new.partitions.refresh(), "no news"

        assert await new.preparer.prepare(ref) == await old.preparer.prepare(ref)
        assert card.places == [(4, 4)]
        assert ref.uid in await refuse(new, beside)
        await new.preparer.unprepare(ref)
        assert card.places == []
        assert await old.partitions.refresh()
        assert not old.partitions.is_foreign(divide(CARD, instance, read_at=1.0), instance)
        await old.preparer.prepare(beside)
        assert card.places == [(5, 1)]


async def test_no_mode_is_switched_while_there_is_another_instance_of_the_plugin(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    peers = [True]

    @contextmanager
    def alone() -> Iterator[bool]:
        yield not peers

    async with start(tmp_path, cluster, card) as rig:
        rig.gpus[name_device(CARD.uuid)] = divide(CARD, enabled=False)
        modes = MigModes(
            rig.partitions,
            rig.ledger,
            gpus=lambda: rig.gpus,
            look=lambda: card.show_to(rig),
            alone=alone,
        )
        assert await modes.switch(), "it waits"
        assert card.modes == {}
        peers.clear()
        assert not await modes.switch()
        assert card.modes == {CARD.uuid: True}


async def test_a_container_can_read_which_instance_it_has(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part("1g.10gb", 6)))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        path = rig.files.directories.metadata_path(ref.uid, "gpu")
        document, _ = decode_metadata(path.read_bytes())
        (device,) = document["requests"][0]["devices"]
        attributes = {
            name: next(iter(value.values())) for name, value in device["attributes"].items()
        }
        assert attributes["uuid"] == card.cards[CARD.uuid][0].parts[0].uuid
        assert (attributes["type"], attributes["profile"]) == ("hami-mig", "1g.10gb")
        assert (attributes["parentUUID"], attributes["memoryMiB"]) == (CARD.uuid, 9856)
        assert attributes["productName"] == CARD.product_name


async def test_after_a_reboot_no_file_gives_rights_to_somebody_elses_instance(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        (name,) = rig.claim_files()
    card.reboot()
    (tmp_path / "cdi" / name).unlink()
    async with resume(tmp_path, cluster, card, boot_id="boot-2") as rig:
        assert rig.claim_files() == [], "the number may be another's by now"
        await rig.preparer.prepare(ref)
        assert rig.claim_files() == [name]


async def test_what_somebody_makes_right_before_us_is_neither_taken_nor_ended(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard
) -> None:
    two = [make_part("1g.5gb", 0, request="small"), make_part(request="large")]
    ref = await put_claim(cluster, make_claim("job", *two))
    theirs = replace(OTHERS, start=4, number=8)
    async with start(tmp_path, cluster, card) as rig:
        card.after = [theirs]
        assert "Insufficient Resources" in await refuse(rig, ref)
        assert card.cards[CARD.uuid] == (theirs,), "the small one has ended again"
        assert await rig.ledger.records() == []
        assert "has not made it" in await refuse(rig, ref)
        await rig.preparer.unprepare(ref)
    assert card.cards[CARD.uuid] == (theirs,)


@pytest.mark.parametrize("slices", [(1,), (1, 2), (2,)])
@pytest.mark.parametrize("then", ["asked again", "never asked again"])
async def test_what_somebody_made_after_our_intent_is_theirs_if_it_is_not_as_we_make_it(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, slices: tuple[int, ...], then: str
) -> None:
    """The process died before it made the instance: nothing says whose the one there is."""
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card, step=cut_after("ledger-intent")) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    parts = tuple(
        Part(number=number, uuid=f"MIG-{number}", slices=each, multiprocessors=14 * each)
        for number, each in enumerate(slices)
    )
    theirs = replace(OTHERS, start=4, number=8, parts=parts)
    card.put(CARD.uuid, theirs)
    async with start(tmp_path, cluster, card) as rig:
        if then == "asked again":
            assert "Insufficient Resources" in await refuse(rig, ref)
        await rig.recovery.start()
        assert card.cards[CARD.uuid] == (theirs,)
        assert await rig.ledger.records() == []


@pytest.mark.parametrize("step", ["", "ledger-intent"])
async def test_a_claim_that_was_allocated_anew_leaves_nothing_of_its_old_instance(
    tmp_path: Path, cluster: FakeCluster, card: DividedCard, step: str
) -> None:
    card.put(CARD.uuid, replace(OTHERS, size=2, profile=14))
    ref = await put_claim(cluster, make_claim("job", make_part()))
    async with start(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
    await put_claim(cluster, make_claim("job", make_part("2g.10gb", 2)))
    if step:
        async with resume(tmp_path, cluster, card, step=cut_after(step)) as rig:
            with pytest.raises(PowerCut):
                await rig.preparer.prepare(ref)
    async with resume(tmp_path, cluster, card) as rig:
        await rig.preparer.prepare(ref)
        assert card.places == [(0, 2), (2, 2)]
        await put_claim(cluster, make_claim("job", make_part("1g.10gb", 2)))
        await rig.preparer.prepare(ref)
        assert [each.profile for each in card.cards[CARD.uuid]] == [14, 15]
        await put_claim(cluster, make_claim("job", make_share(1)))
        await rig.preparer.prepare(ref)
        assert card.places == [(0, 2)]
