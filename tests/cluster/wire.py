"""The frozen types that cross from the client to the supervisor, and their JSON form."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE_ADDRESS = "192.0.2.10"
CONTROL_SOCKET = "control.sock"
API_SOCKET = "api.sock"
PLAN_FILE = "plan.json"
LOCK_FILE = "lock"
KEEP_FILE = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A program of the cluster, what must be ready before it, and how one sees that it is ready.

    ``ready`` is ``started`` (as soon as it runs), ``exited`` (a task: once it ended with status 0),
    ``https://host:port/path`` or ``http://…`` (answers 200), or ``unix:path`` (accepts).
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    after: tuple[str, ...] = ()
    ready: str = "started"
    timeout_seconds: float = 60.0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Component:
        """Read what ``to_json`` wrote."""
        return cls(
            name=raw["name"],
            argv=tuple(raw["argv"]),
            env=dict(raw.get("env") or {}),
            cwd=raw.get("cwd"),
            after=tuple(raw.get("after") or ()),
            ready=raw.get("ready", "started"),
            timeout_seconds=float(raw.get("timeout_seconds", 60.0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the supervisor needs to know; it decides nothing itself."""

    directory: str
    cgroup: str  # this cluster's own cgroup, a name directly below each hierarchy's root
    hosts_name: str
    lifeline: bool  # end everything when stdin is closed
    relays: Mapping[str, tuple[str, int]]  # unix socket -> TCP address inside the namespaces
    components: tuple[Component, ...]
    tmpfs: Mapping[str, str] = field(default_factory=dict)  # directory -> mount options

    def to_json(self) -> str:
        """Write the plan as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote."""
        raw = json.loads(text)
        return cls(
            directory=raw["directory"],
            cgroup=raw["cgroup"],
            hosts_name=raw["hosts_name"],
            lifeline=raw["lifeline"],
            relays={k: (v[0], v[1]) for k, v in raw["relays"].items()},
            components=tuple(Component.from_json(c) for c in raw["components"]),
            tmpfs=dict(raw.get("tmpfs") or {}),
        )
