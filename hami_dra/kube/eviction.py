"""Asks for a pod to be ended, as an administrator's drain does."""

from typing import Final

from hami_dra.kube.errors import ConflictError, NotFoundError
from hami_dra.kube.objects import PODS, Api
from hami_dra.kube.podevents import PodName

_API_VERSION: Final = "policy/v1"


async def evict_pod(api: Api, pod: PodName) -> bool:
    """Ask once; return whether that very pod is ending. Idempotent.

    Raises:
        ApiError: Refused; retryable while a PodDisruptionBudget forbids it.
    """
    path = f"{PODS.path(namespace=pod.namespace, name=pod.name)}/eviction"
    body = {
        "apiVersion": _API_VERSION,
        "kind": "Eviction",
        "metadata": {"namespace": pod.namespace, "name": pod.name},
        "deleteOptions": {"preconditions": {"uid": pod.uid}},
    }
    try:
        await api.session.request("POST", path, body=body)
    except (NotFoundError, ConflictError):
        return False  # gone, or another pod has the name
    return True
