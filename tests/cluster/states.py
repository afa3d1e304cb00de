"""What the status of a pod or node says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cluster.api import Object


def phase(pod: Object | None) -> str:
    """Return a pod's phase; the empty string for no pod."""
    return "" if pod is None else str(pod.get("status", {}).get("phase", ""))


def is_running(pod: Object | None) -> bool:
    """Return whether every container of a pod runs."""
    if pod is None or phase(pod) != "Running":
        return False
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all("running" in status.get("state", {}) for status in statuses)


def has_started(pod: Object | None) -> bool:
    """Return whether every container of a pod runs or has ended."""
    if pod is None:
        return False
    statuses = pod.get("status", {}).get("containerStatuses", [])
    return bool(statuses) and all(
        {"running", "terminated"} & set(s.get("state", {})) for s in statuses
    )


def is_ready(node: Object | None) -> bool:
    """Return whether a node takes pods."""
    if node is None or node["spec"].get("taints"):
        return False
    conditions = node.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
