"""Object verbs: paths, preconditions, and errors that say what failed."""

import pytest

from hami_dra.kube.errors import ApiError, ConflictError, NotFoundError
from hami_dra.kube.objects import CLAIMS, PODS, SLICES, Api
from hami_dra.kube.session import ApiSession, Credentials
from hami_dra.testing.fakecluster import FakeCluster


def test_paths_of_core_and_group_objects() -> None:
    assert PODS.path(namespace="n", name="p") == "/api/v1/namespaces/n/pods/p"
    assert PODS.path() == "/api/v1/pods"
    assert SLICES.path(name="s") == "/apis/resource.k8s.io/v1/resourceslices/s"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "a%2fb"])
def test_a_name_cannot_leave_its_path(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a Kubernetes name"):
        CLAIMS.path(namespace="n", name=name)


async def test_missing_and_taken_names_have_errors_of_their_own() -> None:
    async with FakeCluster() as cluster:
        api = cluster.api()

        with pytest.raises(NotFoundError, match="namespaces/n/resourceclaims/c"):
            await api.get(CLAIMS, "c", namespace="n")
        await api.create(CLAIMS, {"metadata": {"name": "c"}}, namespace="n")
        with pytest.raises(ConflictError):
            await api.create(CLAIMS, {"metadata": {"name": "c"}}, namespace="n")


async def test_a_stale_replace_is_refused() -> None:
    async with FakeCluster() as cluster:
        api = cluster.api()
        first = await api.create(CLAIMS, {"metadata": {"name": "c"}}, namespace="n")
        await api.replace(CLAIMS, "c", {**first, "spec": {"a": 1}}, namespace="n")

        with pytest.raises(ConflictError):
            await api.replace(CLAIMS, "c", {**first, "spec": {"a": 2}}, namespace="n")


async def test_delete_with_preconditions_spares_a_successor() -> None:
    async with FakeCluster() as cluster:
        api = cluster.api()
        old = await api.create(SLICES, {"metadata": {"name": "s"}})
        await api.delete(SLICES, "s")
        await api.create(SLICES, {"metadata": {"name": "s"}})

        with pytest.raises(ConflictError):
            await api.delete(SLICES, "s", uid=old["metadata"]["uid"])

        assert await api.get(SLICES, "s")


async def test_apply_twice_changes_nothing() -> None:
    async with FakeCluster() as cluster:
        api = cluster.api()
        body = {"metadata": {"name": "c"}, "spec": {"a": 1}}

        first = await api.apply(CLAIMS, "c", body, namespace="n")
        second = await api.apply(CLAIMS, "c", body, namespace="n")

        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_no_connection_is_a_retryable_error() -> None:
    session = ApiSession(Credentials(server="http://127.0.0.1:1"))

    with pytest.raises(ApiError, match="GET /api/v1/pods") as caught:
        await Api(session).list(PODS)
    await session.close()

    assert caught.value.retryable
