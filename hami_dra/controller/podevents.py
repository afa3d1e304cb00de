"""Events on pods: what their authors find with ``kubectl describe pod``."""

import datetime as dt
import hashlib
from typing import Any, Final

import structlog

from hami_dra.contract.names import FIELD_MANAGER
from hami_dra.kube import Api, ApiError, ConflictError
from hami_dra.kube.objects import EVENTS
from hami_dra.policy.collection import PodUse
from hami_dra.service.clock import Clock

_log = structlog.get_logger(__name__)

_REPORTER: Final = f"{FIELD_MANAGER}-controller"
_LONGEST_NOTE: Final = 1024
"""In bytes (events.k8s.io/v1 validation)."""
_LONGEST_NAME: Final = 236
"""Leaves room for a dot and the digits in an object's 253."""


class PodEvents:
    """Writes Events, the same one once.

    The name of an Event says what it says, so another leader, or this one after a restart, does
    not repeat it for as long as the API server keeps it.
    """

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock

    async def warn(self, use: PodUse, *, reason: str, action: str, note: str) -> None:
        """Write a warning about a pod; one that cannot be written is only logged.

        Args:
            use: The pod.
            reason: Why, in CamelCase.
            action: What was tried, in CamelCase.
            note: For people.
        """
        body = self._describe(use, reason=reason, action=action, note=note)
        try:
            await self._api.create(EVENTS, body, namespace=use.namespace)
        except ConflictError:
            return  # it is there already
        except ApiError as error:
            _log.warning("event.lost", namespace=use.namespace, pod=use.name, error=str(error))

    def _describe(self, use: PodUse, *, reason: str, action: str, note: str) -> dict[str, Any]:
        digits = hashlib.sha256(f"{use.uid} {reason} {note}".encode()).hexdigest()[:16]
        prefix = use.name[:_LONGEST_NAME].rstrip(".-")
        moment = dt.datetime.fromtimestamp(self._clock.wall(), tz=dt.UTC)
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{prefix}.{digits}", "namespace": use.namespace},
            "eventTime": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"gpu.project-hami.io/{_REPORTER}",
            "reportingInstance": _REPORTER,
            "action": action,
            "reason": reason,
            "type": "Warning",
            "note": note.encode()[:_LONGEST_NOTE].decode(errors="ignore"),
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": use.namespace,
                "name": use.name,
                "uid": use.uid,
            },
        }
