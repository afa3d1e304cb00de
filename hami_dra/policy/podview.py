"""The few fields of a pod that decisions read, checked once.

Admission runs before the API server's own validation, so nothing about a pod is certain yet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hami_dra.contract.errors import UserError


class Resources(msgspec.Struct, frozen=True):
    """``container.resources``; values are whatever was written."""

    limits: dict[str, Any] | None = None
    requests: dict[str, Any] | None = None
    claims: list[dict[str, Any]] | None = None


class SecurityContext(msgspec.Struct, frozen=True):
    """``container.securityContext``."""

    privileged: bool | None = None


class EnvVar(msgspec.Struct, frozen=True, rename="camel"):
    """One of ``container.env``."""

    name: str = ""
    value: str | None = None
    value_from: Any = None


class Container(msgspec.Struct, frozen=True, rename="camel"):
    """One container or init container."""

    name: str = ""
    env: list[EnvVar] | None = None
    resources: Resources | None = None
    security_context: SecurityContext | None = None
    restart_policy: str | None = None


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """``pod.spec``."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    resource_claims: list[dict[str, Any]] | None = None
    node_name: str | None = None
    scheduler_name: str | None = None


class Metadata(msgspec.Struct, frozen=True):
    """``pod.metadata``."""

    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class PodView(msgspec.Struct, frozen=True):
    """A pod as decisions see it."""

    spec: PodSpec
    metadata: Metadata = Metadata()


@dataclass(frozen=True, slots=True)
class Place:
    """A container and where in the pod it stands.

    Attributes:
        kind: "containers" or "initContainers".
        index: Position in that list.
        container: The container.
    """

    kind: str
    index: int
    container: Container

    @property
    def path(self) -> str:
        """JSON path for messages."""
        return f"spec.{self.kind}[{self.index}]"

    @property
    def runs_beside_others(self) -> bool:
        """Whether it lives as long as the pod: an app container or a sidecar."""
        return self.kind == "containers" or self.container.restart_policy == "Always"


def view_pod(pod: Mapping[str, Any]) -> PodView:
    """Read the fields that matter.

    Raises:
        UserError: One of them has a type that no pod can have.
    """
    try:
        return msgspec.convert(pod, PodView)
    except msgspec.ValidationError as error:
        raise UserError(f"the pod cannot be read: {error}") from error


def list_places(pod: PodView) -> Iterator[Place]:
    """Yield the containers in the order in which they start, init containers first."""
    for index, container in enumerate(pod.spec.init_containers or ()):
        yield Place("initContainers", index, container)
    for index, container in enumerate(pod.spec.containers or ()):
        yield Place("containers", index, container)
