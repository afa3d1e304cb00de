"""Device metadata: what a container reads, and what is on disk of it after each step."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hami_dra.node.metadata import name_metadata_ids
from hami_dra.policy.binding import bind_claim
from hami_dra.policy.devices import CardOffer, GpuFacts, name_device, offer_whole
from hami_dra.policy.metadata import decode_metadata, describe_request, encode_metadata
from hami_dra.testing.fakecluster import FakeCluster
from hami_dra.testing.fakegpus import make_gpu
from tests.unit.node.rig import NODE, make_claim, make_share, put_claim, start_rig

KIND = "hami-core-gpu.project-hami.io"
FILE = f"{KIND}-metadata.json"
INSIDE = "/var/run/kubernetes.io/dra-device-attributes"


def offer_all(gpus: Mapping[str, GpuFacts]) -> dict[str, CardOffer]:
    return {name: offer_whole(gpu, split_count=10) for name, gpu in gpus.items()}


def documents(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


async def test_a_container_reads_what_it_was_granted(tmp_path: Path, cluster: FakeCluster) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[f"{KIND}-metadata-{ref.uid}.json"]

    path = tmp_path / "state" / "claims" / ref.uid / "gpu" / "metadata.json"
    new, old = documents(path)
    (request,) = new["requests"]
    (device,) = request["devices"]
    assert [d["apiVersion"] for d in (new, old)] == [
        "metadata.resource.k8s.io/v1beta1",
        "metadata.resource.k8s.io/v1alpha1",
    ]
    assert {**new, "apiVersion": ""} == {**old, "apiVersion": ""}
    assert new["kind"] == "DeviceMetadata"
    assert new["metadata"] == {
        "name": "job",
        "namespace": "team",
        "uid": ref.uid,
        "generation": 1,
    }
    assert "podClaimName" not in new
    assert (request["name"], device["driver"], device["pool"]) == ("gpu", KIND, NODE)
    assert device["name"] == name_device(make_gpu(0).uuid)
    assert device["attributes"]["memoryMiB"] == {"int": 3000}
    assert device["attributes"]["coresPercent"] == {"int": 30}
    assert device["attributes"]["productName"] == {"string": "NVIDIA A100-PCIE-40GB"}
    assert len(device["attributes"]) <= 32
    assert spec == {
        "cdiVersion": "0.3.0",
        "kind": f"{KIND}/metadata",
        "devices": [
            {
                "name": f"{ref.uid}_gpu",
                "containerEdits": {
                    "mounts": [
                        {
                            "hostPath": str(path),
                            "containerPath": f"{INSIDE}/resourceclaims/job/gpu/{FILE}",
                            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
                        }
                    ]
                },
            }
        ],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


async def test_a_claim_of_a_template_is_found_by_the_pods_name_for_it(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    claim = make_claim(
        "pod-gpus-x7k2p",
        make_share(request="a"),
        make_share(1, share=2, request="a"),
        make_share(1, share=3, request="b/small"),
    )
    claim["metadata"]["annotations"] = {"resource.kubernetes.io/pod-claim-name": "gpus"}
    ref = await put_claim(cluster, claim)
    async with start_rig(tmp_path, cluster) as rig:
        devices = await rig.preparer.prepare(ref)
        spec = rig.cdi_files()[f"{KIND}-metadata-{ref.uid}.json"]

    paths = [device["containerEdits"]["mounts"][0]["containerPath"] for device in spec["devices"]]
    claims = tmp_path / "state" / "claims" / ref.uid
    (document, _) = documents(claims / "b" / "metadata.json")
    assert paths == [f"{INSIDE}/resourceclaimtemplates/gpus/{name}/{FILE}" for name in ("a", "b")]
    assert document["podClaimName"] == "gpus"
    assert document["requests"][0]["name"] == "b/small"
    # One id for a request, on its first device: a runtime need not remove doubles.
    assert [device.cdi_ids[2:] for device in devices] == [
        (f"{KIND}/metadata={ref.uid}_a",),
        (),
        (f"{KIND}/metadata={ref.uid}_b",),
    ]


async def test_the_generation_grows_when_what_is_said_changes_and_only_then(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    path = tmp_path / "state" / "claims" / ref.uid / "gpu" / "metadata.json"
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        first = path.read_bytes()
        await rig.preparer.prepare(ref)
        assert path.read_bytes() == first
        (record,) = await rig.ledger.records()
        changed = bind_claim(
            make_claim("job", make_share(memory_mib=2000)), offer_all(rig.gpus), pool=NODE
        )
        rig.files.metadata.write(changed, rig.gpus)
        document, generation = decode_metadata(path.read_bytes())
        assert generation == 2
        assert document == describe_request(changed, "gpu", rig.gpus)
        # Damage is repaired, and so is a file that is lost while its card is, too.
        path.chmod(0o644)
        path.write_bytes(b"{}")
        rig.files.metadata.write(record.binding, rig.gpus)
        assert decode_metadata(path.read_bytes())[1] == 1
        path.unlink()
        rig.files.metadata.write_spec(record.binding)
        document, _ = decode_metadata(path.read_bytes())

    (device,) = document["requests"][0]["devices"]
    assert device["attributes"] == {
        "uuid": {"string": make_gpu(0).uuid},
        "memoryMiB": {"int": 3000},
        "coresPercent": {"int": 30},
        "shareID": {"string": "00000001-0000-4000-8000-000000000000"},
    }


async def test_nothing_of_it_outlives_the_claim_or_is_lost_with_the_cdi_directory(
    tmp_path: Path, cluster: FakeCluster
) -> None:
    ref = await put_claim(cluster, make_claim("job", make_share()))
    cdi = tmp_path / "cdi"
    mine = cdi / f"{KIND}-metadata-{ref.uid}.json"
    async with start_rig(tmp_path, cluster) as rig:
        await rig.preparer.prepare(ref)
        before = mine.read_bytes()
        mine.unlink()
        (cdi / f"{KIND}-metadata-old.json").write_text("{}")
        assert await rig.recovery.repair() == 1
        assert mine.read_bytes() == before
    async with start_rig(tmp_path, cluster) as rig:
        report = await rig.recovery.start()
        assert (report.kept, report.undone) == (1, 1)
        await rig.preparer.unprepare(ref)
        assert [name for name in rig.cdi_files() if "metadata" in name] == []
        assert rig.claim_directories() == []


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"metadata":[]}', b'{"metadata":{"generation":"x"}}']
)
def test_what_is_no_metadata_is_told_from_it(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not device metadata"):
        decode_metadata(raw)


def test_a_card_shown_for_administration_has_no_limits_to_tell() -> None:
    gpus = {name_device(make_gpu(0).uuid): make_gpu(0)}
    claim = make_claim("job", make_share(adminAccess=True))
    binding = bind_claim(claim, offer_all(gpus), pool=NODE)

    document = describe_request(binding, "gpu", gpus)

    attributes = document["requests"][0]["devices"][0]["attributes"]
    assert "memoryMiB" not in attributes
    assert decode_metadata(encode_metadata(document, 7)) == (document, 7)
    assert name_metadata_ids(binding) == [(f"{KIND}/metadata=uid-job_gpu",)]
