"""What a start finds and puts right: files, the ledger, what a reboot left."""

import asyncio
import shutil
from pathlib import Path

import pytest

from hami_dra.kube.objects import CLAIMS
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.cuts import snapshot
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig


async def test_cdi_files_are_rendered_again_at_start(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        before = snapshot(tmp_path)
    shutil.rmtree(tmp_path / "cdi")
    (tmp_path / "libvgpu.so").write_bytes(b"\x7fELF newer library")
    async with start_rig(tmp_path, cluster) as rig:
        report = await rig.recovery.start()
        # The card's own file is written when the cards are known.
        rig.files.base.write_cards(rig.gpus)

    assert (report.kept, report.undone) == (1, 0)
    assert snapshot(tmp_path) == before
    assert len(list((tmp_path / "state" / "lib").glob("*.so"))) == 2


async def test_leftovers_without_a_row_are_swept_and_strangers_are_not(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    cdi = tmp_path / "cdi"
    cdi.mkdir()
    (cdi / "hami-core-gpu.project-hami.io-claim-old.json").write_text("{}")
    (cdi / ".hami-core-gpu.project-hami.io-claim-old.json.tmp").write_text("{")
    (cdi / "nvidia.yaml").write_text("kind: x")
    (tmp_path / "state" / "claims" / "older").mkdir(parents=True)
    async with start_rig(tmp_path, cluster) as rig:
        report = await rig.recovery.start()

    assert report.undone == 2
    assert [path.name for path in cdi.iterdir()] == ["nvidia.yaml"]


async def test_half_written_files_of_a_killed_process_are_swept(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
    claim = tmp_path / "state" / "claims" / ref.uid
    tenants = claim / "gpu" / "region" / ".own.tmp"
    ours = (
        tmp_path / "cdi" / ".hami-core-gpu.project-hami.io-card.json.0a1b2c3d.tmp",
        tmp_path / "state" / "lib" / ".libvgpu-1.so.0a1b2c3d.tmp",
        claim / ".record.json.tmp",
        claim / "gpu" / ".grant.tmp",
    )
    for path in (tenants, *ours):
        path.write_bytes(b"half")
    async with start_rig(tmp_path, cluster) as rig:
        await rig.recovery.start()

    assert [path for path in ours if path.exists()] == []
    assert tenants.exists()


@pytest.mark.parametrize("damage", [b"not a database at all", b""])
async def test_a_lost_ledger_is_rebuilt_from_the_records_beside_the_claims(
    tmp_path: Path, cluster: FakeCluster, damage: bytes
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
    for path in (tmp_path / "state").glob("ledger.db*"):
        path.unlink()
    if damage:
        (tmp_path / "state" / "ledger.db").write_bytes(damage * 100)
    async with start_rig(tmp_path, cluster) as rig:
        report = await rig.recovery.start()

        assert (report.restored, report.kept, report.undone) == (1, 1, 0)
        assert rig.claim_files()
        await rig.preparer.prepare(ref)


async def test_a_copy_of_another_version_keeps_its_claim_until_the_kubelet_asks(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    copy = tmp_path / "state" / "claims" / ref.uid / "record.json"
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        before = snapshot(tmp_path)
    (tmp_path / "state" / "ledger.db").unlink()
    copy.write_text('{"of": "another version"}')
    async with start_rig(tmp_path, cluster) as rig:
        report = await rig.recovery.start()
        assert (report.restored, report.undone) == (0, 0)
        assert rig.claim_files(), "its containers may be running"
        await rig.preparer.prepare(ref)

        assert snapshot(tmp_path) == before
        await rig.preparer.unprepare(ref)
        assert rig.claim_directories() == []


@pytest.mark.parametrize("copy", [b"", b"\0" * 900])
async def test_what_a_power_cut_left_of_a_copy_keeps_no_claim(
    tmp_path: Path, cluster: FakeCluster, copy: bytes
) -> None:
    """Nobody waits for a copy, so a cut before "ready" may leave its name and not its bytes."""
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        await rig.ledger.remove(ref.uid)
    (tmp_path / "state" / "claims" / ref.uid / "record.json").write_bytes(copy)
    async with start_rig(tmp_path, cluster, boot_id="boot-2") as rig:
        report = await rig.recovery.start()

        assert (report.restored, report.undone) == (0, 1)
        assert (rig.claim_files(), rig.claim_directories()) == ([], [])


async def test_after_a_reboot_regions_are_empty_and_claims_that_are_gone_are_swept(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    kept = await put_claim(cluster, make_claim("kept", make_share()))
    gone = await put_claim(cluster, make_claim("gone", make_share(share=2)))
    async with start_rig(tmp_path, cluster) as rig:
        for ref in (kept, gone):
            await rig.preparer.prepare(ref)
        region = tmp_path / "state" / "claims" / kept.uid / "gpu" / "region" / "region"
        region.write_bytes(b"of processes that are dead")
        await cluster.remove(CLAIMS, "gone", namespace="team")
        assert await rig.recovery.sweep() == 0, "its containers may still run in this boot"
    async with start_rig(tmp_path, cluster, boot_id="boot-2") as rig:
        await rig.recovery.start()

        assert region.parent.is_dir()
        assert not region.exists()
        assert await rig.recovery.sweep() == 1
        assert rig.claim_directories() == [kept.uid]


async def test_a_claim_that_was_seen_is_not_asked_for_and_one_that_is_missed_is_at_once(
    tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    seen = {ref.uid}
    async with start_rig(tmp_path, cluster, has_seen=seen.__contains__) as rig:
        await rig.preparer.prepare(ref)
        before = len(cluster.requests)
        swept, tidy = asyncio.Semaphore(0), rig.recovery.tidy

        async def count() -> None:
            await tidy()
            swept.release()

        monkeypatch.setattr(rig.recovery, "tidy", count)
        sweeping = asyncio.create_task(rig.recovery.sweep_forever())
        async with asyncio.timeout(10):
            await swept.acquire()
            assert len(cluster.requests) == before
            seen.clear()
            rig.recovery.note_missing()
            await swept.acquire()
        assert len(cluster.requests) == before + 1
        sweeping.cancel()
