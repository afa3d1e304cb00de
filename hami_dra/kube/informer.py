"""A live copy of one collection: list, watch, and again, for as long as the process lives.

Rules (k8s.io/client-go reflector, KEP-365): the list comes in pages, and of each only what is kept
stays in memory; bookmarks move the resume point without events; 410 means list again; a silent
connection is opened anew, because a dead NAT entry looks exactly like a quiet cluster.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hami_dra.kube.errors import ApiError, GoneError
from hami_dra.kube.objects import Api, Resource

_log = structlog.get_logger(__name__)

_IDLE_SECONDS: Final = 90.0
"""Bookmarks arrive about once a minute, so this much silence is a broken connection."""
_SERVER_TIMEOUT_SECONDS: Final = 300
_BACKOFF_SECONDS: Final = (0.2, 10.0)

Handler = Callable[[str, dict[str, Any]], None]
"""Called with "ADDED", "MODIFIED" or "DELETED" and the object, in the informer's task."""

Keep = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Returns what is stored of an object, ``None`` to leave it out. The metadata's namespace, name and
resourceVersion must stay."""


@dataclass(frozen=True)
class InformerStatistics:
    """How an informer is doing."""

    objects: int
    lists: int
    events: int
    errors: int


class Informer:
    """Keep a collection in memory and tell who wants to know.

    Attributes:
        store: Objects by (namespace, name); namespace is "" for cluster-scoped ones. Read-only.
        synced: Set once the first list is in the store.
        changed: Set after every change; a reader clears it before it reads the store.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
        handler: Handler | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Prepare; `run` starts.

        Args:
            api: Where the objects are.
            resource: Their kind.
            namespace: One namespace, or all.
            field_selector: Kubernetes field selector.
            label_selector: Kubernetes label selector.
            handler: Hears of every change, after it is in the store.
            keep: What is stored, and told to the handler, instead of whole objects. An object
                that is no longer kept counts as deleted.
        """
        self.store: dict[tuple[str, str], dict[str, Any]] = {}
        self.synced = asyncio.Event()
        self.changed = asyncio.Event()
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._field_selector = field_selector
        self._label_selector = label_selector
        self._handler = handler
        self._keep = keep
        self._lists = 0
        self._events = 0
        self._errors = 0

    def objects(self) -> list[dict[str, Any]]:
        """Return the stored objects in the order of their names."""
        return [self.store[key] for key in sorted(self.store)]

    def statistics(self) -> InformerStatistics:
        """Return counts since the start."""
        return InformerStatistics(
            objects=len(self.store), lists=self._lists, events=self._events, errors=self._errors
        )

    async def run(self) -> None:
        """Follow the collection until cancelled; never gives up."""
        low, high = _BACKOFF_SECONDS
        delay = low
        while True:
            try:
                version = await self._list()
                delay = low
                while version:
                    version = await self._watch(version)
            except ApiError as error:
                self._errors += 1
                _log.warning(
                    "watch.retry",
                    resource=self._resource.plural,
                    error=str(error),
                    delay_seconds=round(delay, 2),
                )
                # Jitter keeps a fleet of nodes from returning all at once.
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
                delay = min(delay * 2, high)

    async def _list(self) -> str:
        version = ""
        listed: set[tuple[str, str]] = set()
        async for page, version in self._api.pages(  # noqa: B007 - the last one is returned
            self._resource,
            namespace=self._namespace,
            field_selector=self._field_selector,
            label_selector=self._label_selector,
        ):
            for item in page:
                kept = self._shorten(item)
                if kept is not None:
                    listed.add(_key(kept))
                    self._meet(kept)
        self._lists += 1
        for key in [key for key in self.store if key not in listed]:
            self._apply("DELETED", self.store[key])
        if not self.synced.is_set():
            self.synced.set()
            self.changed.set()
        return version

    def _meet(self, item: dict[str, Any]) -> None:
        known = self.store.get(_key(item))
        if known is None:
            self._apply("ADDED", item)
        elif _version(known) != _version(item):
            self._apply("MODIFIED", item)

    async def _watch(self, version: str) -> str:
        """Follow from a version; return where to resume, "" to list again."""
        params = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_SERVER_TIMEOUT_SECONDS),
        }
        if self._field_selector:
            params["fieldSelector"] = self._field_selector
        if self._label_selector:
            params["labelSelector"] = self._label_selector
        path = self._resource.path(namespace=self._namespace)
        try:
            async with self._api.session.stream(
                path, params=params, idle_seconds=_IDLE_SECONDS
            ) as events:
                async for event in events:
                    kind = event.get("type")
                    item = event.get("object")
                    if not isinstance(item, dict):
                        continue
                    if kind == "ERROR":
                        if item.get("code") == GoneError.status_code:
                            return ""
                        raise ApiError(
                            f"WATCH {path}: {item.get('message', 'unknown error')}",
                            status=int(item.get("code") or 0),
                        )
                    version = _version(item) or version
                    if kind in {"ADDED", "MODIFIED", "DELETED"}:
                        self._follow(str(kind), item)
        except GoneError:
            return ""
        return version

    def _shorten(self, item: dict[str, Any]) -> dict[str, Any] | None:
        return item if self._keep is None else self._keep(item)

    def _follow(self, kind: str, item: dict[str, Any]) -> None:
        kept = self._shorten(item)
        if kept is not None:
            self._apply(kind, kept)
            return
        known = self.store.get(_key(item))
        if known is not None:
            self._apply("DELETED", known)

    def _apply(self, kind: str, item: dict[str, Any]) -> None:
        self._events += 1
        if kind == "DELETED":
            self.store.pop(_key(item), None)
        else:
            self.store[_key(item)] = item
        self.changed.set()
        if self._handler is not None:
            self._handler(kind, item)


def _key(item: dict[str, Any]) -> tuple[str, str]:
    metadata = item.get("metadata", {})
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))


def _version(item: dict[str, Any]) -> str:
    return str(item.get("metadata", {}).get("resourceVersion", ""))
