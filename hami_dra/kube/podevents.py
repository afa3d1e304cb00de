"""Events on pods: what their authors find with ``kubectl describe pod``."""

import datetime as dt
import hashlib
from typing import Any, Final, Protocol

import structlog

from hami_dra.kube.errors import ApiError, ConflictError
from hami_dra.kube.objects import EVENTS, Api
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_LONGEST_NOTE: Final = 1024
"""In bytes (events.k8s.io/v1 validation)."""
_LONGEST_NAME: Final = 236
"""Leaves room for a dot and the digits in an object's 253."""


class PodName(Protocol):
    """What names a pod."""

    @property
    def namespace(self) -> str:
        """Where it is."""
        ...

    @property
    def name(self) -> str:
        """Its name there."""
        ...

    @property
    def uid(self) -> str:
        """What tells it from the next of that name."""
        ...


class PodEvents:
    """Writes Events, the same one once.

    The name of an Event says what it says, so another leader, or this one after a restart, does
    not repeat it for as long as the API server keeps it.

    Args:
        api: Needs create on events of events.k8s.io.
        clock: Dates them.
        reporter: The process, such as ``hami-dra-controller``.
    """

    def __init__(self, api: Api, clock: Clock, *, reporter: str) -> None:
        self._api = api
        self._clock = clock
        self._reporter = reporter

    async def warn(self, pod: PodName, *, reason: str, action: str, note: str) -> None:
        """Write a warning about a pod; one that cannot be written is only logged.

        Args:
            pod: Whom it is about.
            reason: Why, in CamelCase.
            action: What was tried, in CamelCase.
            note: For people.
        """
        body = self._describe(pod, reason=reason, action=action, note=note)
        try:
            await self._api.create(EVENTS, body, namespace=pod.namespace)
        except ConflictError:
            return  # it is there already
        except ApiError as error:
            _log.warning("event.lost", namespace=pod.namespace, pod=pod.name, error=str(error))

    def _describe(self, pod: PodName, *, reason: str, action: str, note: str) -> dict[str, Any]:
        digits = hashlib.sha256(f"{pod.uid} {reason} {note}".encode()).hexdigest()[:16]
        prefix = pod.name[:_LONGEST_NAME].rstrip(".-")
        moment = dt.datetime.fromtimestamp(self._clock.wall(), tz=dt.UTC)
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{prefix}.{digits}", "namespace": pod.namespace},
            "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"gpu.project-hami.io/{self._reporter}",
            "reportingInstance": self._reporter,
            "action": action,
            "reason": reason,
            "type": "Warning",
            "note": note.encode()[:_LONGEST_NOTE].decode(errors="ignore"),
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
        }
