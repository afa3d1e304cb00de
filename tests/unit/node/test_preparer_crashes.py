"""A process that dies after a step of Prepare or Unprepare, and the next one."""

from pathlib import Path

import pytest

from hami_dra.node.preparer import PREPARE_STEPS, UNPREPARE_STEPS
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.cuts import PowerCut, cut_after, snapshot
from tests.unit.node.rig import make_claim, make_share, put_claim, start_rig


@pytest.mark.parametrize("step", PREPARE_STEPS)
async def test_a_crash_in_prepare_is_finished_by_the_next_one(
    tmp_path: Path, cluster: FakeCluster, step: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster, step=cut_after(step)) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    async with start_rig(tmp_path, cluster) as rig:
        await rig.recovery.start()
        await rig.preparer.prepare(ref)
        after = snapshot(tmp_path)
        assert [record.ready for record in await rig.ledger.records()] == [True]
        await rig.preparer.unprepare(ref)
        assert rig.claim_files() == []
        assert rig.claim_directories() == []

    clean = tmp_path / "clean"
    clean.mkdir()
    async with start_rig(clean, cluster) as rig:
        await rig.preparer.prepare(ref)
    assert set(snapshot(clean)) == set(after)


@pytest.mark.parametrize("step", PREPARE_STEPS)
async def test_a_crash_in_prepare_of_a_pod_that_never_returns_leaks_nothing(
    tmp_path: Path, cluster: FakeCluster, step: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster, step=cut_after(step)) as rig:
        with pytest.raises(PowerCut):
            await rig.preparer.prepare(ref)
    async with start_rig(tmp_path, cluster) as rig:
        await rig.recovery.start()
        ready = await rig.ledger.records()

        # After "ledger-ready" the kubelet may have been told, so it will call Unprepare.
        assert bool(ready) == (step == "ledger-ready")
        assert bool(rig.claim_files()) == bool(ready)
        assert bool(rig.claim_directories()) == bool(ready)


@pytest.mark.parametrize("step", UNPREPARE_STEPS)
async def test_a_crash_in_unprepare_is_finished_by_the_next_one(
    tmp_path: Path, cluster: FakeCluster, step: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster, step=cut_after(step)) as rig:
        await rig.preparer.prepare(ref)
        with pytest.raises(PowerCut):
            await rig.preparer.unprepare(ref)
    async with start_rig(tmp_path, cluster) as rig:
        await rig.recovery.start()
        await rig.preparer.unprepare(ref)

        assert rig.claim_files() == []
        assert rig.claim_directories() == []
        assert await rig.ledger.records() == []
