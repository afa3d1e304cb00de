"""Follows the node's annotation by which a person keeps new claims off some cards."""

from collections.abc import Callable
from typing import Any

import structlog

from hami_dra.contract.names import ANNOTATION_DEVICE_CORDON
from hami_dra.kube import Api, Informer
from hami_dra.kube.objects import NODES
from hami_dra.policy.taints import read_cordon

_log = structlog.get_logger(__name__)


class CordonWatch:
    """Tells which cards are cordoned, as often as that changes.

    Args:
        api: Needs list and watch on nodes.
        node_name: The node whose annotation counts.
        on_change: Called with the UUIDs; never before the annotation was read once.
    """

    def __init__(
        self, api: Api, *, node_name: str, on_change: Callable[[frozenset[str]], None]
    ) -> None:
        self._on_change = on_change
        self._known: frozenset[str] = frozenset()
        self._informer = Informer(
            api,
            NODES,
            field_selector=f"metadata.name={node_name}",
            handler=self._note,
            keep=_keep_annotation,
        )

    async def run(self) -> None:
        """Follow the node until cancelled."""
        await self._informer.run()

    def _note(self, event: str, node: dict[str, Any]) -> None:
        annotations = node["metadata"].get("annotations") or {}
        text = None if event == "DELETED" else annotations.get(ANNOTATION_DEVICE_CORDON)
        cordoned = read_cordon(text)
        if cordoned != self._known:
            _log.info("cards.cordoned", uuids=sorted(cordoned))
            self._known = cordoned
            self._on_change(cordoned)


def _keep_annotation(node: dict[str, Any]) -> dict[str, Any]:
    """Drop the rest of a Node: it is large, and its status changes every few seconds."""
    metadata = node["metadata"]
    annotations = metadata.get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key == ANNOTATION_DEVICE_CORDON}
    return {
        "metadata": {
            "name": metadata["name"],
            "resourceVersion": metadata["resourceVersion"],
            "annotations": kept,
        }
    }
