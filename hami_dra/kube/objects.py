"""Verbs on Kubernetes objects: get, list, create, apply, replace, patch, delete."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hami_dra.contract.names import FIELD_MANAGER
from hami_dra.kube.session import ApiSession

_PAGE_SIZE: Final = 100
"""A page of slices is then about a megabyte, and decoding it holds nothing else up for long."""


@dataclass(frozen=True)
class Resource:
    """One kind of object and where the API server keeps it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    def path(self, *, namespace: str | None = None, name: str | None = None) -> str:
        """Return the URL path of a collection or an object.

        Raises:
            ValueError: A part that cannot stand in a path.
        """
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_segment(name))
        return "/".join(parts)


def _segment(text: str) -> str:
    if not text or text in {".", ".."} or any(c in text for c in "/?#%"):
        raise ValueError(f"{text!r} cannot be a Kubernetes name")
    return text


PODS: Final = Resource("v1", "Pod", "pods", namespaced=True)
NODES: Final = Resource("v1", "Node", "nodes", namespaced=False)
NAMESPACES: Final = Resource("v1", "Namespace", "namespaces", namespaced=False)
LEASES: Final = Resource("coordination.k8s.io/v1", "Lease", "leases", namespaced=True)
QUOTAS: Final = Resource("v1", "ResourceQuota", "resourcequotas", namespaced=True)
EVENTS: Final = Resource("events.k8s.io/v1", "Event", "events", namespaced=True)
CLAIMS: Final = Resource("resource.k8s.io/v1", "ResourceClaim", "resourceclaims", namespaced=True)
TEMPLATES: Final = Resource(
    "resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates", namespaced=True
)
SLICES: Final = Resource("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False)
DEVICE_CLASSES: Final = Resource(
    "resource.k8s.io/v1", "DeviceClass", "deviceclasses", namespaced=False
)
DEVICE_TAINT_RULES: Final = Resource(
    "resource.k8s.io/v1", "DeviceTaintRule", "devicetaintrules", namespaced=False
)
MUTATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io/v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
    namespaced=False,
)
VALIDATING_WEBHOOKS: Final = Resource(
    "admissionregistration.k8s.io/v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    namespaced=False,
)


class Api:
    """Object verbs over a session. Every method raises `ApiError` and nothing else."""

    def __init__(self, session: ApiSession) -> None:
        self.session = session

    async def get(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        cached: bool = False,
    ) -> dict[str, Any]:
        """Return one object; `NotFoundError` if there is none.

        Args:
            resource: What to read.
            name: Of the object.
            namespace: Of the object.
            cached: As the API server remembers it, which costs etcd nothing and may be old.
        """
        return await self.session.request(
            "GET",
            resource.path(namespace=namespace, name=name),
            params={"resourceVersion": "0"} if cached else None,
        )

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
    ) -> tuple[list[dict[str, Any]], str]:
        """Return all objects of a collection and its resourceVersion; see `pages`."""
        items: list[dict[str, Any]] = []
        version = ""
        async for page, version in self.pages(  # noqa: B007 - the last one is returned
            resource,
            namespace=namespace,
            field_selector=field_selector,
            label_selector=label_selector,
        ):
            items += page
        return items, version

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
    ) -> AsyncIterator[tuple[Sequence[dict[str, Any]], str]]:
        """Yield a collection page by page, each with the collection's resourceVersion.

        All pages show the same moment. Since Kubernetes 1.34 the API server serves them from its
        memory, fresh (KEP-2340, KEP-4988), so this costs little more than a list that may be old,
        which has no pages: those hold the whole collection in memory at both ends.

        Args:
            resource: What to list.
            namespace: One namespace, or all.
            field_selector: Kubernetes field selector.
            label_selector: Kubernetes label selector.

        Raises:
            GoneError: The caller took so long that the moment is forgotten; begin again.
        """
        params = {"limit": str(_PAGE_SIZE)}
        if field_selector:
            params["fieldSelector"] = field_selector
        if label_selector:
            params["labelSelector"] = label_selector
        while True:
            page = await self.session.request(
                "GET", resource.path(namespace=namespace), params=params, timeout_seconds=30
            )
            metadata = page.get("metadata") or {}
            yield page.get("items") or [], str(metadata.get("resourceVersion", ""))
            if not metadata.get("continue"):
                return
            params["continue"] = metadata["continue"]

    async def create(
        self, resource: Resource, body: Mapping[str, Any], *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Create an object; `ConflictError` if the name is taken."""
        return await self.session.request(
            "POST",
            resource.path(namespace=namespace),
            params={"fieldManager": FIELD_MANAGER},
            body=body,
        )

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
        subresource: str = "",
        force: bool = False,
    ) -> dict[str, Any]:
        """Server-side apply under our field manager. Idempotent."""
        path = resource.path(namespace=namespace, name=name)
        return await self.session.request(
            "PATCH",
            f"{path}/{subresource}" if subresource else path,
            params={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Mapping[str, Any],
        *,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Replace an object; `ConflictError` if it changed since ``body`` was read."""
        return await self.session.request(
            "PUT",
            resource.path(namespace=namespace, name=name),
            params={"fieldManager": FIELD_MANAGER},
            body=body,
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Any,
        *,
        namespace: str | None = None,
        subresource: str = "",
        content_type: str = "application/merge-patch+json",
    ) -> dict[str, Any]:
        """Patch an object, by JSON merge patch unless told otherwise.

        Raises:
            ConflictError: The patch has a resourceVersion, and the object another one.
        """
        path = resource.path(namespace=namespace, name=name)
        return await self.session.request(
            "PATCH",
            f"{path}/{subresource}" if subresource else path,
            params={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type=content_type,
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> None:
        """Delete an object; with preconditions, only that very one.

        Raises:
            NotFoundError: It is gone already.
            ConflictError: A precondition does not hold.
        """
        preconditions = {
            key: value
            for key, value in (("uid", uid), ("resourceVersion", resource_version))
            if value is not None
        }
        await self.session.request(
            "DELETE",
            resource.path(namespace=namespace, name=name),
            body={
                "apiVersion": "meta.k8s.io/v1",
                "kind": "DeleteOptions",
                **({"preconditions": preconditions} if preconditions else {}),
            },
        )
