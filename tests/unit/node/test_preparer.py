"""Prepare and Unprepare: what is on disk after each, whatever happened in between."""

import asyncio
import shutil
import stat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from hami_dra.cdi.store import CdiDirectoryError
from hami_dra.contract.errors import HamiDraError, RetryError, UserError
from hami_dra.contract.grant import GrantDevice, decode_grant
from hami_dra.contract.names import CONFIG_API_VERSION, CONFIG_KIND, DRIVER_NAME
from hami_dra.contract.quantity import MIB
from hami_dra.kube.objects import CLAIMS
from hami_dra.kubeletplugin.service import ClaimRef
from hami_dra.node.settings import InjectPath
from hami_dra.testing.fakecluster import FakeCluster
from tests.unit.node.cuts import snapshot
from tests.unit.node.rig import Rig, make_claim, make_share, put_claim, start_rig


async def test_prepare_leaves_grant_region_and_cdi_file(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        (device,) = await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[f"hami-core-gpu.project-hami.io-claim-{ref.uid}.json"]

    share = tmp_path / "state" / "claims" / ref.uid / "gpu"
    grant = decode_grant((share / "grant").read_bytes())
    library = next((tmp_path / "state" / "lib").glob("libvgpu-0.1.0-*.so"))
    options = ["nosuid", "nodev"]
    assert (device.request, device.pool) == ("gpu", "node-1")
    assert device.share_id == "00000001-0000-4000-8000-000000000000"
    assert device.cdi_ids == (
        f"hami-core-gpu.project-hami.io/claim={ref.uid}-00000001",
        f"hami-core-gpu.project-hami.io/card={device.device}",
        f"hami-core-gpu.project-hami.io/metadata={ref.uid}_gpu",
    )
    assert (grant.claim_uid, grant.request) == (ref.uid, "gpu")
    assert [(d.memory_limit_bytes, d.cores_percent) for d in grant.devices] == [(3000 * MIB, 30)]
    assert spec == {
        "cdiVersion": "0.3.0",
        "kind": "hami-core-gpu.project-hami.io/claim",
        "devices": [
            {
                "name": f"{ref.uid}-00000001",
                "containerEdits": {
                    "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                    "mounts": [
                        {
                            "hostPath": str(library),
                            "containerPath": "/usr/local/lib/vgpu/libvgpu.so",
                            "options": ["ro", *options, "rbind", "rprivate"],
                        },
                        {
                            "hostPath": str(library.parent / "ld.so.preload"),
                            "containerPath": "/etc/ld.so.preload",
                            "options": ["ro", *options, "rbind", "rprivate"],
                        },
                        {
                            "hostPath": str(share / "grant"),
                            "containerPath": f"/run/vgpu/{ref.uid}_gpu/grant",
                            "options": ["ro", *options, "rbind", "rprivate"],
                        },
                        {
                            "hostPath": str(share / "region"),
                            "containerPath": f"/run/vgpu/{ref.uid}_gpu/region",
                            "options": ["rw", *options, "noexec", "rbind", "rprivate"],
                        },
                    ],
                },
            }
        ],
    }
    assert stat.S_IMODE((share / "region").stat().st_mode) == 0o1777
    assert stat.S_IMODE((share / "grant").stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "state" / "claims").stat().st_mode) == 0o700


async def test_the_card_file_mounts_the_driver_under_the_names_that_loaders_ask_for(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share(1)))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        spec = rig.cdi_files()["hami-core-gpu.project-hami.io-card.json"]

    inside = {mount["containerPath"] for mount in spec["containerEdits"]["mounts"]}
    assert spec["cdiVersion"] == "0.5.0"
    assert [device["name"][:12] for device in spec["devices"]] == ["gpu-00000000", "gpu-00000001"]
    assert {
        "/usr/lib64/libcuda.so.1",
        "/usr/lib64/libcuda.so.580.95.05",
        "/usr/lib64/libnvidia-ml.so.1",
    } <= inside
    assert spec["devices"][1]["containerEdits"]["deviceNodes"] == [
        {
            "path": "/dev/nvidia1",
            "hostPath": str(tmp_path / "driver" / "dev" / "nvidia1"),
            "type": "c",
            "major": 1,
            "minor": 3,
            "permissions": "rw",
        }
    ]


async def test_the_toolkits_own_device_is_preferred_while_its_files_exist(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claim = make_claim("job", make_share())
    ref = await put_claim(cluster, claim)
    async with start_rig(tmp_path, cluster) as rig:
        uuid = next(iter(rig.gpus.values())).uuid
        path = tmp_path / "etc-cdi" / "nvidia.yaml"
        path.parent.mkdir()
        path.write_text(
            "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n"
            f"- name: {uuid}\n  containerEdits:\n    deviceNodes:\n"
            f"    - path: /dev/nvidia0\n      hostPath: {tmp_path}/driver/dev/nvidia0\n"
        )
        (fresh,) = await rig.preparer.prepare(ref)
        (tmp_path / "driver" / "dev" / "elsewhere").symlink_to("/dev/null")
        path.write_text(path.read_text().replace("dev/nvidia0\n", "dev/nvidia9\n"))
        (stale,) = await rig.preparer.prepare(ref)

    assert fresh.cdi_ids[1] == f"nvidia.com/gpu={uuid}"
    assert stale.cdi_ids[1].startswith("hami-core-gpu.project-hami.io/card=")


async def test_every_request_of_a_claim_has_its_own_grant(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claim = make_claim(
        "job",
        make_share(0, share=1, request="a"),
        make_share(0, share=2, request="a", memory_mib=1000),
        make_share(1, share=3, request="b/small", memory_mib=500),
        make_share(1, share=4, request="watch", adminAccess=True),
    )
    ref = await put_claim(cluster, claim)
    async with start_rig(tmp_path, cluster) as rig:
        devices = await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[rig.claim_files()[0]]

    claims = tmp_path / "state" / "claims" / ref.uid
    first = decode_grant((claims / "a" / "grant").read_bytes())
    second = decode_grant((claims / "b" / "grant").read_bytes())
    assert [device.request for device in devices] == ["a", "a", "b", "watch"]
    assert len({device.cdi_ids[0] for device in devices}) == 4
    assert [d.memory_limit_bytes // MIB for d in first.devices] == [3000, 1000]
    assert [d.memory_limit_bytes // MIB for d in second.devices] == [500]
    assert spec["devices"][3]["containerEdits"] == {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    assert [path.name for path in (claims / "watch").iterdir()] == ["metadata.json"]


async def prepare_configured(
    tmp_path: Path, cluster: FakeCluster, request: str, **fields: Any
) -> dict[str, GrantDevice]:
    """Prepare a claim with requests a and b, one of them configured; return their grants."""
    claim = make_claim("job", make_share(request="a"), make_share(1, share=2, request="b"))
    parameters = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND, **fields}
    claim["status"]["allocation"]["devices"]["config"] = [
        {
            "source": "FromClaim",
            "requests": [request],
            "opaque": {"driver": DRIVER_NAME, "parameters": parameters},
        }
    ]
    ref = await put_claim(cluster, claim)
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)

    claims = tmp_path / "state" / "claims" / ref.uid
    grants = {name: decode_grant((claims / name / "grant").read_bytes()) for name in ("a", "b")}
    return {name: grant.devices[0] for name, grant in grants.items()}


async def test_a_claim_without_control_says_so_in_its_grant(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    granted = await prepare_configured(tmp_path, cluster, "a", disableControl=True)

    assert {n: d.control_disabled for n, d in granted.items()} == {"a": True, "b": False}
    assert granted["a"].memory_limit_bytes == 3000 * MIB


async def test_an_oversubscribed_claim_says_so_in_its_grant(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    granted = await prepare_configured(tmp_path, cluster, "b", oversubscription=True)

    assert {name: device.spill for name, device in granted.items()} == {"a": False, "b": True}


async def test_preparing_again_changes_nothing(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        first = await rig.preparer.prepare(ref)
        (tmp_path / "state" / "claims" / ref.uid / "gpu" / "region" / "region").write_bytes(b"live")
        before = snapshot(tmp_path)
        second = await rig.preparer.prepare(ref)

        assert second == first
        assert snapshot(tmp_path) == before
        assert len(await rig.ledger.records()) == 1


@pytest.mark.parametrize(
    "lost", ["cdi", "state/claims/uid-job/gpu/grant", "state/claims/uid-job/gpu/region"]
)
async def test_preparing_again_repairs_what_is_missing(
    tmp_path: Path, cluster: FakeCluster, lost: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        before = snapshot(tmp_path)
        path = tmp_path / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        await rig.preparer.prepare(ref)

        assert snapshot(tmp_path) == before
        assert path.exists()


async def test_a_changed_limit_is_written_into_the_grant_that_containers_have_mapped(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claim = make_claim("job", make_share())
    ref = await put_claim(cluster, claim)
    path = tmp_path / "state" / "claims" / ref.uid / "gpu" / "grant"
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        inode = path.stat().st_ino
        await put_claim(cluster, make_claim("job", make_share(memory_mib=2000)))
        await rig.preparer.prepare(ref)

    grant = decode_grant(path.read_bytes())
    assert path.stat().st_ino == inode
    assert grant.devices[0].memory_limit_bytes == 2000 * MIB
    assert grant.sequence == 2


async def test_unprepare_leaves_nothing_and_needs_no_api_server(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        await cluster.remove(CLAIMS, "job", namespace="team")
        cluster.fault = lambda _method, _path: 500
        await rig.preparer.unprepare(ref)
        await rig.preparer.unprepare(ref)

        assert rig.claim_files() == []
        assert rig.claim_directories() == []
        assert await rig.ledger.records() == []


@pytest.mark.parametrize("uid", ["../../etc", "a/b", "", ".."])
async def test_a_uid_never_becomes_a_path_elsewhere(
    tmp_path: Path, cluster: FakeCluster, uid: str
) -> None:
    async with start_rig(tmp_path, cluster) as rig:
        with pytest.raises((HamiDraError, ValueError)):
            await rig.preparer.unprepare(ClaimRef("team", "job", uid))


async def refuse(rig: Rig, ref: ClaimRef) -> str:
    with pytest.raises(HamiDraError) as caught:
        await rig.preparer.prepare(ref)
    return f"{type(caught.value).__name__}: {caught.value}"


async def test_two_owners_of_one_share_are_refused_until_the_first_has_left(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    first = await put_claim(cluster, make_claim("one", make_share(memory_mib=30000)))
    second = await put_claim(cluster, make_claim("two", make_share(share=2, memory_mib=20000)))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(first)
        text = await refuse(rig, second)
        await rig.preparer.unprepare(first)
        await rig.preparer.prepare(second)

    assert text.startswith("CardTakenError")
    assert "memory MiB 50000 of 40960" in text
    assert first.uid in text


async def test_a_whole_card_has_no_second_owner(tmp_path: Path, cluster: FakeCluster) -> None:
    whole: dict[str, Any] = {"shareID": None, "consumedCapacity": None}
    first = await put_claim(cluster, make_claim("one", make_share(memory_mib=1)))
    second = await put_claim(cluster, make_claim("two", make_share(**whole)))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(first)

        assert "a whole card and other shares" in await refuse(rig, second)


async def test_a_replaced_claim_is_not_prepared(tmp_path: Path, cluster: FakeCluster) -> None:
    await put_claim(cluster, make_claim("job", make_share(), uid="new"))
    async with start_rig(tmp_path, cluster) as rig:
        text = await refuse(rig, ClaimRef("team", "job", "old"))

    assert text.startswith("UserError")
    assert "team/job was replaced" in text


@pytest.mark.parametrize(
    ("lost", "word"),
    [
        ("driver/dev/nvidia0", "dev/nvidia0"),
        ("driver/usr/lib64/libcuda.so.580.95.05", "libcuda.so.1"),
    ],
)
async def test_a_missing_driver_file_is_named(
    tmp_path: Path, cluster: FakeCluster, lost: str, word: str
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        (tmp_path / lost).unlink()

        assert word in await refuse(rig, ref)


async def test_a_missing_path_to_inject_is_named(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    paths = (InjectPath(tmp_path / "not-there", "/run/x"),)
    async with start_rig(tmp_path, cluster, inject_paths=paths) as rig:
        assert str(tmp_path / "not-there") in await refuse(rig, ref)


async def test_paths_to_inject_are_mounted(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    paths = (InjectPath(tmp_path, "/run/vgpu-sim", read_only=False),)
    async with start_rig(tmp_path, cluster, inject_paths=paths) as rig:
        await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[rig.claim_files()[0]]

    mount = spec["devices"][0]["containerEdits"]["mounts"][0]
    assert (mount["hostPath"], mount["containerPath"]) == (str(tmp_path), "/run/vgpu-sim")
    assert mount["options"][0] == "rw"


async def test_a_cdi_directory_that_cannot_be_written_is_a_permanent_error_that_names_it(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    (tmp_path / "file").write_text("not a directory")
    async with start_rig(tmp_path, cluster, cdi_dir=tmp_path / "file" / "cdi") as rig:
        with pytest.raises(CdiDirectoryError, match="file/cdi is not writable"):
            await rig.preparer.prepare(ref)
        await rig.recovery.repair()

    assert "is not writable" in str(rig.cdi_state[-1])


async def test_errors_tell_those_that_pass_from_those_that_stay() -> None:
    assert not issubclass(CdiDirectoryError, RetryError | UserError)


async def test_the_record_is_the_row(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        raw = (tmp_path / "state" / "claims" / ref.uid / "record.json").read_bytes()
        (record,) = await rig.ledger.records()

    assert msgspec.json.decode(raw) == msgspec.json.decode(msgspec.json.encode(record))


async def test_an_injected_device_is_a_device(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    injected = (InjectPath(Path("/dev/null"), "/dev/gdrdrv"), InjectPath(tmp_path, "/data"))
    async with start_rig(tmp_path, cluster, inject_paths=injected) as rig:
        await rig.preparer.prepare(ref)
        (name,) = rig.claim_files()
        edits = rig.cdi_files()[name]["devices"][0]["containerEdits"]

    assert edits["deviceNodes"] == [
        {
            "path": "/dev/gdrdrv",
            "hostPath": "/dev/null",
            "type": "c",
            "major": 1,
            "minor": 3,
            "permissions": "rw",
        }
    ]
    assert edits["mounts"][0]["containerPath"] == "/data"


async def test_of_many_claims_the_first_are_done_before_the_last_are_read(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    refs = [
        await put_claim(
            cluster, make_claim(f"job-{n}", make_share(n % 2, share=n, memory_mib=9, cores=1))
        )
        for n in range(20)
    ]
    reads: list[int] = []
    async with start_rig(tmp_path, cluster) as rig:
        cluster.requests.clear()

        async def prepare(ref: ClaimRef) -> None:
            await rig.preparer.prepare(ref)
            reads.append(sum(method == "GET" for method, _ in cluster.requests))

        await asyncio.gather(*map(prepare, refs))

    assert reads[0] <= 8
    assert reads[-1] == 20


async def test_a_file_that_goes_while_directories_are_removed_is_tried_again(
    tmp_path: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", Mock(side_effect=FileNotFoundError("a tenant's")))
            with pytest.raises(RetryError, match="cannot be removed"):
                await rig.preparer.unprepare(ref)
        assert rig.claim_directories() == [ref.uid]
        await rig.preparer.unprepare(ref)

        assert (rig.claim_directories(), await rig.ledger.records()) == ([], [])
