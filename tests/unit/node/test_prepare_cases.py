"""What Prepare makes of each kind of claim, and of claims that meet on one card."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from hami_dra.contract.errors import HamiDraError, RetryError
from hami_dra.contract.grant import decode_grant
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.policy.devices import name_device
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig

MIB: Final = 1 << 20
WHOLE: Final[dict[str, Any]] = {"shareID": None, "consumedCapacity": None}
FIRST, SECOND = (name_device(make_gpu(number).uuid) for number in (0, 1))
FOREIGN: Final = {
    "request": "net",
    "driver": "net.example.com",
    "pool": "node-1",
    "device": FIRST,
    "shareID": "99999999-0000-4000-8000-000000000000",
}


@dataclass(frozen=True)
class Case:
    """A claim and what the kubelet is told.

    Attributes:
        results: Of its allocation.
        answers: Request, device and share of each device, in order; shares by their first digits.
        limits: MiB of each card in each request's grant.
        error: Part of the refusal instead.
    """

    results: tuple[dict[str, Any], ...]
    answers: tuple[tuple[str, str, str | None], ...] = ()
    limits: dict[str, list[int]] = field(default_factory=dict)
    error: str = ""


CASES: Final = {
    "one share": Case((make_share(),), (("gpu", FIRST, "00000001"),), {"gpu": [3000]}),
    "two shares of one card in one request": Case(
        (make_share(share=1), make_share(share=2, memory_mib=1000)),
        (("gpu", FIRST, "00000001"), ("gpu", FIRST, "00000002")),
        {"gpu": [3000, 1000]},
    ),
    "two shares of one card in two requests": Case(
        (make_share(share=1, request="a"), make_share(share=2, request="b", memory_mib=500)),
        (("a", FIRST, "00000001"), ("b", FIRST, "00000002")),
        {"a": [3000], "b": [500]},
    ),
    "an alternative of a request": Case(
        (make_share(request="g/small"),), (("g", FIRST, "00000001"),), {"g": [3000]}
    ),
    "alternatives of two requests with one name": Case(
        (make_share(request="a/small"), make_share(1, share=2, request="b/small")),
        (("a", FIRST, "00000001"), ("b", SECOND, "00000002")),
        {"a": [3000], "b": [3000]},
    ),
    "an extended resource's claim": Case(
        (make_share(request="container-0-request-0"),),
        (("container-0-request-0", FIRST, "00000001"),),
        {"container-0-request-0": [3000]},
    ),
    "admin access beside a share": Case(
        (make_share(request="watch", adminAccess=True), make_share(share=2)),
        (("watch", FIRST, "00000001"), ("gpu", FIRST, "00000002")),
        {"gpu": [3000]},
    ),
    "admin access of a cluster without shares": Case(
        (make_share(**WHOLE, adminAccess=True),), (("gpu", FIRST, None),)
    ),
    "a whole card, of a cluster without shares": Case(
        (make_share(**WHOLE),), (("gpu", FIRST, None),)
    ),
    "two whole cards": Case(
        (make_share(**WHOLE), make_share(1, **WHOLE)),
        (("gpu", FIRST, None), ("gpu", SECOND, None)),
    ),
    "one whole card twice": Case(
        (make_share(**WHOLE), make_share(request="b", **WHOLE)),
        error="a whole card and other shares",
    ),
    "a share without what it consumes": Case(
        (make_share(consumedCapacity=None),), (("gpu", FIRST, "00000001"),)
    ),
    "another driver's device of the same name": Case(
        (FOREIGN, make_share(), {**FOREIGN, "device": "eth0"}),
        (("gpu", FIRST, "00000001"),),
        {"gpu": [3000]},
    ),
    "only another driver's": Case((FOREIGN,), error="has no device of driver"),
    "of another node": Case((make_share(pool="node-2"),), error="node-1"),
    "no memory": Case((make_share(memory_mib=0),), error="consumedCapacity.memory: is 0Mi"),
    "a card that is gone": Case(
        (make_share(device="gpu-gone"),), error="card gpu-gone is gone from this node"
    ),
    "nothing yet": Case((), error="status.allocation"),
}


async def put_case(cluster: FakeCluster, case: Case) -> ClaimRef:
    claim = make_claim("job", *case.results)
    if not case.results:
        claim["status"] = {}
    return await put_claim(cluster, claim)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.error])
async def test_a_claim_is_prepared(tmp_path: Path, cluster: FakeCluster, name: str) -> None:
    case = CASES[name]
    ref = await put_case(cluster, case)
    async with start_rig(tmp_path, cluster) as rig:
        devices = await rig.preparer.prepare(ref)
        (record,) = await rig.ledger.records()
        grants = {
            request: decode_grant(path.read_bytes())
            for request in record.binding.requests
            if (path := rig.files.directories.grant_path(ref.uid, request)).exists()
        }

    answers = tuple((d.request, d.device, d.share_id and d.share_id[:8]) for d in devices)
    assert answers == case.answers
    assert len({device.cdi_ids[0] for device in devices}) == len(devices)
    assert all(device.pool == "node-1" for device in devices)
    assert {
        request: [device.memory_limit_bytes // MIB for device in grant.devices]
        for request, grant in grants.items()
    } == case.limits


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.error])
async def test_a_claim_is_refused(tmp_path: Path, cluster: FakeCluster, name: str) -> None:
    case = CASES[name]
    ref = await put_case(cluster, case)
    async with start_rig(tmp_path, cluster) as rig:
        with pytest.raises(HamiDraError, match=re.escape(case.error)):
            await rig.preparer.prepare(ref)

        assert await rig.ledger.records() == []
        assert rig.claim_files() == []


async def test_two_claims_in_one_container_do_not_meet(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    """Neither by a path nor by a variable: a runtime applies them in any order."""
    one = await put_claim(cluster, make_claim("one", make_share(share=1)))
    two = await put_claim(cluster, make_claim("two", make_share(share=1, memory_mib=500)))
    async with start_rig(tmp_path, cluster) as rig:
        for ref in (one, two):
            await rig.preparer.prepare(ref)
        specs = [rig.cdi_files()[name] for name in rig.claim_files()]

    edits = [spec["devices"][0]["containerEdits"] for spec in specs]
    mounts = [{m["containerPath"]: m["hostPath"] for m in edit["mounts"]} for edit in edits]
    common = set(mounts[0]) & set(mounts[1])
    assert common == {"/usr/local/lib/vgpu/libvgpu.so", "/etc/ld.so.preload"}
    assert all(mounts[0][path] == mounts[1][path] for path in common)
    assert edits[0]["env"] == edits[1]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


async def test_the_pods_of_one_claim_share_its_grant_and_region(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claim = make_claim("shared", make_share(memory_mib=30000))
    ref = await put_claim(cluster, claim)
    async with start_rig(tmp_path, cluster) as rig:
        first = await rig.preparer.prepare(ref)
        region = rig.files.directories.region_path(ref.uid, "gpu") / "region"
        region.write_bytes(b"of the first pod")
        claim["status"]["reservedFor"] = [{"name": "one"}, {"name": "two"}]
        await put_claim(cluster, claim)
        # A restart of kubelet between the two: else it does not even ask.
        second = await rig.preparer.prepare(ref)

        assert second == first
        assert region.read_bytes() == b"of the first pod"
        assert len(await rig.ledger.records()) == 1, "it counts once"


async def test_a_claim_that_was_replaced_is_unprepared_beside_its_successor(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    old = await put_claim(cluster, make_claim("job", make_share(), uid="old"))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(old)
        await cluster.remove(CLAIMS, "job", namespace="team")
        new = await put_claim(cluster, make_claim("job", make_share(1), uid="new"))
        await rig.preparer.prepare(new)
        with pytest.raises(HamiDraError, match="was replaced"):
            await rig.preparer.prepare(old)
        await rig.preparer.unprepare(old)

        assert rig.claim_directories() == ["new"]
        assert len(rig.claim_files()) == 1


async def refused(rig: Rig, ref: Any) -> str:
    with pytest.raises(RetryError) as caught:
        await rig.preparer.prepare(ref)
    return str(caught.value)


async def test_a_predecessor_that_was_deleted_by_force_is_waited_for(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    dead = await put_claim(cluster, make_claim("dead", make_share(memory_mib=30000)))
    heir = await put_claim(cluster, make_claim("heir", make_share(share=2, memory_mib=30000)))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(dead)
        assert "no longer exist" not in await refused(rig, heir)
        await cluster.remove(CLAIMS, "dead", namespace="team")

        text = await refused(rig, heir)
        assert "team/dead no longer exist" in text
        assert rig.claim_directories() == ["uid-dead"], "its containers may still run"
        await rig.preparer.unprepare(dead)
        await rig.preparer.prepare(heir)


async def test_what_nobody_can_be_using_gives_way_at_once(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    """A claim of the last boot, and one whose Prepare never ended, both gone from the API."""
    dead = await put_claim(cluster, make_claim("dead", make_share(memory_mib=20000, cores=0)))
    never = await put_claim(
        cluster, make_claim("never", make_share(share=2, memory_mib=20000, cores=0))
    )
    heir = await put_claim(
        cluster, make_claim("heir", make_share(share=3, memory_mib=40000, cores=0))
    )
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(dead)
    async with start_rig(tmp_path, cluster, boot_id="boot-2") as rig:
        await rig.recovery.start()
        library = rig.files.installed.library.rename(tmp_path / "moved")
        assert "no such file" in await refused(rig, never)
        library.rename(rig.files.installed.library)
        assert "uid-dead, uid-never" in await refused(rig, heir)
        for name in ("dead", "never"):
            await cluster.remove(CLAIMS, name, namespace="team")
        async with rig.locks.hold("uid-never"):
            assert "uid-never" in await refused(rig, heir), "somebody works on it"

        await rig.preparer.prepare(heir)

        assert rig.claim_directories() == ["uid-heir"]


async def test_an_api_server_that_is_away_leaves_everything_as_it_is(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    dead = await put_claim(cluster, make_claim("dead", make_share(memory_mib=30000)))
    heir = await put_claim(cluster, make_claim("heir", make_share(share=2, memory_mib=30000)))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(dead)
    async with start_rig(tmp_path, cluster, boot_id="boot-2") as rig:
        cluster.fault = lambda _, path: 503 if path.endswith("/dead") else None

        assert "held by claims uid-dead" in await refused(rig, heir)
        assert rig.claim_directories() == ["uid-dead"]


async def test_after_a_reboot_everything_is_prepared_again(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claims = [make_claim(f"c{number}", make_share(share=number, cores=20)) for number in range(5)]
    refs = [await put_claim(cluster, claim) for claim in claims]
    async with start_rig(tmp_path, cluster) as rig:
        first = [await rig.preparer.prepare(ref) for ref in refs]
    for path in (tmp_path / "cdi").iterdir():
        path.unlink()
    async with start_rig(tmp_path, cluster, boot_id="boot-2") as rig:
        await rig.recovery.start()
        assert len(rig.claim_files()) == 5
        again = [await rig.preparer.prepare(ref) for ref in refs]
        boots = {record.boot_id for record in await rig.ledger.records()}

    assert again == first
    assert boots == {"boot-2"}
