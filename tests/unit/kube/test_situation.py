"""What an explanation is made of: read with the caller's rights, and nothing is written."""

from typing import Any

import pytest

from hami_dra.contract.settings import DEFAULT_SETTINGS
from hami_dra.kube.errors import ApiError, NotFoundError
from hami_dra.kube.objects import CLAIMS, DEVICE_CLASSES, NODES, PODS, SLICES, TEMPLATES, Resource
from hami_dra.kube.situation import SituationReader
from hami_dra.testing.fakecluster import FakeCluster

SPEC = {"devices": {"requests": [{"name": "a"}]}}
ALLOCATION: dict[str, Any] = {"devices": {"results": []}}


async def fill(cluster: FakeCluster, *, template: bool = True) -> None:
    api = cluster.api()

    async def create(resource: Resource, name: str, **body: Any) -> None:
        namespace = "team" if resource.namespaced else None
        await api.create(resource, {"metadata": {"name": name}, **body}, namespace=namespace)

    if template:
        await create(TEMPLATES, "made-later", spec={"spec": SPEC})
    await create(CLAIMS, "own", spec=SPEC, status={"allocation": ALLOCATION})
    await create(CLAIMS, "pod-made-x1", spec=SPEC)
    await create(NODES, "n1")
    await create(DEVICE_CLASSES, "gpu")
    await create(SLICES, "s", spec={"nodeName": "n2", "driver": "d", "pool": {"name": "p"}})
    await create(
        PODS,
        "pod",
        spec={
            "resourceClaims": [
                {"name": "own", "resourceClaimName": "own"},
                {"name": "made", "resourceClaimTemplateName": "made-now"},
                {"name": "later", "resourceClaimTemplateName": "made-later"},
                {"name": "unneeded", "resourceClaimTemplateName": "made-later"},
                {"name": "gone", "resourceClaimName": "gone"},
            ]
        },
        status={
            "resourceClaimStatuses": [
                {"name": "made", "resourceClaimName": "pod-made-x1"},
                {"name": "unneeded"},
            ]
        },
    )


async def test_claims_come_from_their_objects_or_templates() -> None:
    async with FakeCluster() as cluster:
        await fill(cluster)
        found = await SituationReader(cluster.api()).read_pod("team", "pod")
    claims = {claim.name: claim for claim in found.claims}
    assert claims["own"].allocation == ALLOCATION
    assert claims["made"].origin == "ResourceClaim pod-made-x1"
    assert claims["made"].spec == claims["later"].spec == SPEC
    assert claims["later"].origin == "not made yet, from ResourceClaimTemplate made-later"
    assert claims["unneeded"].spec == {}
    assert claims["gone"].spec is None
    assert found.subject == "Pod team/pod"
    assert [node["metadata"]["name"] for node in found.nodes] == ["n1"]
    assert list(found.classes) == ["gpu"]
    assert len(found.all_claims) == 2
    assert found.notes == ()


async def test_a_template_that_is_gone_is_said() -> None:
    async with FakeCluster() as cluster:
        await fill(cluster, template=False)
        found = await SituationReader(cluster.api()).read_pod("team", "pod")
    later = next(claim for claim in found.claims if claim.name == "later")
    assert (later.spec, later.origin) == (None, "ResourceClaimTemplate made-later does not exist")


async def test_what_one_may_not_read_becomes_a_note() -> None:
    async with FakeCluster() as cluster:
        await fill(cluster)

        def forbid(method: str, path: str) -> int | None:
            assert method == "GET"
            hidden = ("/api/v1/nodes", "/apis/resource.k8s.io/v1/resourceclaims", "made-later")
            return 403 if path.endswith(hidden) else None

        cluster.fault = forbid
        found = await SituationReader(cluster.api()).read_pod("team", "pod")
    assert [node["metadata"]["name"] for node in found.nodes] == ["n2"]
    assert len(found.all_claims) == 2
    assert found.notes == (
        "you may not read ResourceClaimTemplate made-later",
        "you may not list nodes of the cluster",
        "you may not list resourceclaims of the cluster",
    )


async def test_a_server_that_fails_is_an_error() -> None:
    async with FakeCluster() as cluster:
        await fill(cluster)
        cluster.fault = lambda _, path: 500 if path.endswith("/nodes") else None
        with pytest.raises(ApiError):
            await SituationReader(cluster.api()).read_pod("team", "pod")


async def test_a_claim_by_itself() -> None:
    async with FakeCluster() as cluster:
        await fill(cluster)
        reader = SituationReader(cluster.api())
        found = await reader.read_claim("team", "pod-made-x1")
        assert found.pod is None
        assert found.claims[0].spec == SPEC
        with pytest.raises(NotFoundError):
            await reader.read_claim("team", "absent")


async def test_an_extended_resource_is_the_claim_that_the_scheduler_will_make() -> None:
    limits = {"nvidia.com/gpu": "2", "cpu": "1"}
    pod = {
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": limits}}]},
    }
    async with FakeCluster() as cluster:
        api = cluster.api()
        await api.create(PODS, pod, namespace="team")
        for name in ("z", "gpu", "gpv"):
            spec = {"extendedResourceName": "nvidia.com/gpu"} if name != "z" else {}
            await api.create(DEVICE_CLASSES, {"metadata": {"name": name}, "spec": spec})
        found = await SituationReader(api).read_pod("team", "p")
        (claim,) = found.claims
        assert claim.spec == {
            "devices": {
                "requests": [
                    {
                        "name": "container-1-request-0",
                        "exactly": {"deviceClassName": "gpu", "count": 2},
                    }
                ]
            }
        }
        await api.create(
            CLAIMS,
            {"metadata": {"name": "made"}, "spec": SPEC, "status": {"allocation": ALLOCATION}},
            namespace="team",
        )
        status = {"extendedResourceClaimStatus": {"resourceClaimName": "made"}}
        await api.patch(PODS, "p", {"status": status}, namespace="team")
        found = await SituationReader(api).read_pod("team", "p")
    assert found.claims[0].allocation == ALLOCATION


async def test_keys_that_nobody_took() -> None:
    pod = {
        "metadata": {"name": "p", "namespace": "team"},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}}]},
    }
    async with FakeCluster() as cluster:
        reader = SituationReader(cluster.api())
        said = await reader.explain_keys(pod, DEFAULT_SETTINGS)
        assert said.startswith(
            "it still has nvidia.com/gpu, so admission did not rewrite it: there"
        )
        assert await reader.explain_keys({**pod, "spec": {}}, DEFAULT_SETTINGS) == ""
