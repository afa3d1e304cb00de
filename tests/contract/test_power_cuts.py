"""The power is cut under the real process, on a real file system, at hundreds of its writes."""

import asyncio
import os
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from hami_dra.contract.grant import decode_grant
from hami_dra.contract.names import DRIVER_NAME
from hami_dra.contract.quantity import MIB
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.policy.devices import name_device
from hami_dra.policy.metadata import decode_metadata
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from hami_dra.testing.fakekubelet import FakeClaim, FakeKubelet
from tests.contract.disklog import list_places
from tests.contract.nodeprocess import BUILD, CARD, Place, make_claim
from tests.contract.powercuts import (
    FILE_SYSTEMS,
    PowerCuts,
    RecordedDisk,
    list_lacking,
    make_disk,
    record,
)
from tests.unit.node.rig import Rig, start_rig

LACKING: Final = list_lacking()
CUTS: Final = int(os.environ.get("HAMI_DRA_EXAMPLES", "60"))
PODS: Final = 10
"""At a time: together they take the whole card, so a claim that came back would be in the way."""
TURNS: Final = 5
MEMORY_MIB: Final = 4096
ENDING: Final = 60
"""Writes and waits from SIGTERM to the unmounted disk, about."""


@dataclass
class Story:
    """What the kubelet asked for and was told, by claim: places in the disk's log."""

    prepare: dict[str, int] = field(default_factory=dict)
    prepared: dict[str, int] = field(default_factory=dict)
    unprepare: dict[str, int] = field(default_factory=dict)
    unprepared: dict[str, int] = field(default_factory=dict)

    def until(self, place: int) -> "Story":
        """Return what had happened by then."""
        parts = (self.prepare, self.prepared, self.unprepare, self.unprepared)
        return Story(*({uid: at for uid, at in part.items() if at <= place} for part in parts))


@pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}")
@pytest.mark.timeout(max(240, 4 * CUTS))
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
async def test_what_the_kubelet_was_told_survives_a_power_cut(
    base: Path, cluster: FakeCluster, kind: str
) -> None:
    with make_disk(FILE_SYSTEMS[kind]) as disk:
        story = await prepare_and_unprepare(base, cluster, disk)
        places = list_places(disk.log)
        chance = random.Random(kind)  # noqa: S311 - to be repeated
        cuts = PowerCuts(disk, chance)
        # Half of them where the process ends: what it leaves lasts until the next one starts.
        ends = chance.choices(places[-ENDING:], k=CUTS // 2)
        for place in sorted([*chance.choices(places, k=CUTS - len(ends)), *ends]):
            with cuts.mount(place):
                try:
                    await recover(base, cluster, disk, story.until(place))
                except BaseException as error:
                    error.add_note(f"cut at {place}, event {places.index(place)} of {len(places)}")
                    raise


async def prepare_and_unprepare(base: Path, cluster: FakeCluster, disk: RecordedDisk) -> Story:
    """Let pods come and go on a disk that is recorded."""
    story = Story()

    async def live(pod: int) -> None:
        for turn in range(TURNS):
            claim = FakeClaim(f"uid-{pod}-{turn}", f"{pod}-{turn}", "team")
            await cluster.put(CLAIMS, make_claim(claim.name, MEMORY_MIB))
            story.prepare[claim.uid] = disk.place()
            answer = (await kubelet.prepare(info.endpoint, claim))[claim.uid]
            story.prepared[claim.uid] = disk.place()
            assert answer.error == ""
            story.unprepare[claim.uid] = disk.place()
            assert await kubelet.unprepare(info.endpoint, claim) == {claim.uid: ""}
            story.unprepared[claim.uid] = disk.place()

    async with record(disk), Place.make(base, cluster) as place:
        directories = ("--state-dir", str(disk.root / "state"), "--cdi-dir", str(disk.root / "cdi"))
        process = await place.start(options=directories)
        kubelet = FakeKubelet(place.kubelet_dir)
        info = await kubelet.register(DRIVER_NAME, timeout_seconds=120)
        async with asyncio.TaskGroup() as pods:
            for pod in range(PODS):
                pods.create_task(live(pod), name=f"pod-{pod}")
        await place.stop(process)
    return story


async def recover(base: Path, cluster: FakeCluster, disk: RecordedDisk, story: Story) -> None:
    """Start after a power cut, be asked what the kubelet asks then, and end all pods."""
    options: dict[str, Any] = {
        "state_dir": disk.root / "state",
        "cdi_dir": disk.root / "cdi",
        "driver_root": base / "driver",
        "libvgpu": BUILD / "src" / "libvgpu.so",
    }
    async with start_rig(base, cluster, boot_id="the next", **options) as rig:
        rig.gpus.clear()
        rig.gpus[name_device(CARD.uuid)] = replace(make_gpu(), uuid=CARD.uuid)
        await rig.recovery.start()
        assert rig.ledger.restored == 0, "the ledger itself is never lost"
        ready = await check(rig)
        assert story.prepared.keys() - story.unprepare.keys() <= ready
        assert ready <= story.prepare.keys() - story.unprepared.keys()

        for uid in story.unprepare.keys() - story.unprepared.keys():
            await rig.preparer.unprepare(refer(uid))
        running = story.prepare.keys() - story.unprepare.keys()
        for uid in running:
            await rig.preparer.prepare(refer(uid))
            grant = decode_grant(rig.files.directories.grant_path(uid, "gpu").read_bytes())
            assert [each.memory_limit_bytes for each in grant.devices] == [MEMORY_MIB * MIB]
            document = rig.files.directories.metadata_path(uid, "gpu").read_bytes()
            assert decode_metadata(document)[0]["metadata"]["uid"] == uid
        assert await check(rig) == running

        for uid in running:
            await rig.preparer.unprepare(refer(uid))
        assert await check(rig) == set()


async def check(rig: Rig) -> set[str]:
    """Require that disk and ledger agree, and return the claims that are prepared."""
    records = await rig.ledger.records()
    ready = {record.binding.claim_uid for record in records if record.ready}
    assert len(ready) == len(records), "an intent that nobody was told of is undone"
    assert sum(d.consumed_memory_mib for r in records for d in r.binding.devices) <= CARD.memory_mib
    assert {name.partition("-claim-")[2] for name in rig.claim_files()} == {
        f"{uid}.json" for uid in ready
    }
    assert set(rig.claim_directories()) == ready
    roots = (rig.settings.state_dir, rig.settings.cdi_dir)
    assert [path for root in roots for path in root.rglob("*.tmp")] == []
    return ready


def refer(uid: str) -> ClaimRef:
    return ClaimRef("team", uid.removeprefix("uid-"), uid)
