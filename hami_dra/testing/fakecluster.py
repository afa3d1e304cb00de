"""An API server for tests: the object verbs and watches over HTTP, without etcd.

It knows nothing of any kind: objects are stored by path. What it does as the real one does:
resourceVersions, UIDs, generateName, optimistic locking, delete preconditions, merge patch,
server-side apply (as a deep merge; no field ownership), the status subresource (which writes all
of an object), field selectors on plain paths, label selectors by equality, watches with bookmarks
and 410, pages, dry-run. What it does not: validation, defaulting, authorization; those are tested
on the real API server (tests/cluster).
"""

import asyncio
import copy
import itertools
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import msgspec
from aiohttp import ClientConnectionResetError, web

from hami_dra.kube.objects import Api, Resource
from hami_dra.kube.session import ApiSession, Credentials

Object = dict[str, Any]
Fault = Callable[[str, str], int | None]
"""Called with method and path; a number is the HTTP status to answer instead."""


class FakeCluster:
    """Serve a fake API server on loopback for the length of an ``async with`` block.

    Attributes:
        requests: Every (method, path) that arrived, watches included.
        fault: Set it to make requests fail.
        fault_message: What they then say.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault | None = None
        self.fault_message = "injected fault"
        self._objects: dict[str, Object] = {}
        self._versions = itertools.count(1)
        self._version = 0
        self._history: list[tuple[int, str, str, Object]] = []
        self._oldest = 0
        self._moved = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._session: ApiSession | None = None
        self._closing = False
        self.url = ""

    async def __aenter__(self) -> Self:
        """Start serving on a free port."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._session = ApiSession(Credentials(server=self.url))
        return self

    async def __aexit__(self, *_: object) -> None:
        """End every watch and stop serving."""
        self._closing = True
        async with self._moved:
            self._moved.notify_all()
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def api(self) -> Api:
        """Return object verbs against this server."""
        if self._session is None:
            raise RuntimeError("the fake cluster is not started; use `async with`")
        return Api(self._session)

    def objects(self, resource: Resource) -> list[Object]:
        """Return all stored objects of a kind, in the order of their paths."""
        mark = f"/{resource.plural}/"
        root = resource.path().rsplit("/", 1)[0] + "/"
        return [
            copy.deepcopy(item)
            for path, item in sorted(self._objects.items())
            if path.startswith(root) and mark in path
        ]

    async def put(self, resource: Resource, body: Object) -> Object:
        """Store an object as some other client would: create it or replace it."""
        metadata = body.get("metadata", {})
        collection = resource.path(namespace=metadata.get("namespace"))
        path = f"{collection}/{metadata['name']}"
        return await self._store(path, copy.deepcopy(body), created=path not in self._objects)

    async def remove(self, resource: Resource, name: str, *, namespace: str | None = None) -> None:
        """Delete an object as some other client would."""
        await self._drop(resource.path(namespace=namespace, name=name))

    async def compact(self) -> None:
        """Forget the history: the next watch from an old version gets 410."""
        async with self._moved:
            # One version further, so that watches that are up to date are behind as well.
            self._oldest = self._version = next(self._versions)
            self._history.clear()
            self._moved.notify_all()

    async def wait_for(
        self, condition: Callable[[], bool], *, timeout_seconds: float = 5.0
    ) -> None:
        """Wait until something about the stored objects holds.

        Raises:
            TimeoutError: It did not in time.
        """
        async with asyncio.timeout(timeout_seconds), self._moved:
            await self._moved.wait_for(condition)

    # Storage ---------------------------------------------------------------------------------

    async def _store(self, path: str, body: Object, *, created: bool) -> Object:
        async with self._moved:
            self._version = next(self._versions)
            metadata = body.setdefault("metadata", {})
            old = self._objects.get(path)
            metadata["uid"] = (
                old["metadata"]["uid"] if old else metadata.get("uid") or str(uuid.uuid4())
            )
            metadata["resourceVersion"] = str(self._version)
            self._objects[path] = body
            self._record("ADDED" if created else "MODIFIED", path, body)
            self._moved.notify_all()
        return copy.deepcopy(body)

    async def _drop(self, path: str) -> None:
        async with self._moved:
            body = copy.deepcopy(self._objects.pop(path))
            self._version = next(self._versions)
            body["metadata"]["resourceVersion"] = str(self._version)
            self._record("DELETED", path, body)
            self._moved.notify_all()

    def _record(self, kind: str, path: str, body: Object) -> None:
        self._history.append((self._version, kind, path, copy.deepcopy(body)))

    # HTTP ------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append((request.method, path))
        status = self.fault(request.method, path) if self.fault else None
        if status is not None:
            return _status(status, self.fault_message, "Injected")
        collection = _is_collection(path)
        if request.method == "GET":
            if request.query.get("watch"):
                return await self._watch(request, path)
            return self._list(request, path) if collection else self._get(path)
        if request.method == "POST" and collection:
            return await self._create(request, path)
        if request.method in {"PUT", "PATCH", "DELETE"} and not collection:
            return await self._change(request, path.removesuffix("/status"))
        return _status(405, f"{request.method} {path}", "MethodNotAllowed")

    def _get(self, path: str) -> web.Response:
        item = self._objects.get(path)
        return _not_found(path) if item is None else web.json_response(item)

    def _list(self, request: web.Request, path: str) -> web.Response:
        version, _, after = request.query.get("continue", "").partition(" ")
        version = version or str(self._version)
        if int(version) < self._oldest:
            return _status(410, "the continue token is too old", "Expired")
        found = [
            (key, item)
            for key, item in sorted(self._objects.items())
            if key > after and _belongs(key, path) and _selected(item, request.query)
        ]
        limit = int(request.query.get("limit") or 0) or len(found)
        metadata = {"resourceVersion": version}
        if len(found) > limit:
            metadata["continue"] = f"{version} {found[limit - 1][0]}"
        items = [item for _, item in found[:limit]]
        return web.json_response({"kind": "List", "metadata": metadata, "items": items})

    async def _create(self, request: web.Request, path: str) -> web.Response:
        body = await request.json()
        metadata = body.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = f"{metadata.get('generateName', '')[:58]}{uuid.uuid4().hex[:5]}"
        namespace = _namespace(path)
        if namespace:
            metadata.setdefault("namespace", namespace)
        key = f"{path}/{metadata['name']}"
        if key in self._objects:
            return _status(409, f"{key} already exists", "AlreadyExists")
        if request.query.get("dryRun"):
            return web.json_response(body, status=201)
        return web.json_response(await self._store(key, body, created=True), status=201)

    async def _change(self, request: web.Request, path: str) -> web.Response:
        known = self._objects.get(path)
        applied = request.content_type == "application/apply-patch+yaml"
        if known is None and not applied:
            return _not_found(path)
        raw = await request.read()
        body = msgspec.json.decode(raw) if raw else {}
        wanted = (body.get("preconditions") or {}) if request.method == "DELETE" else {}
        version = (body.get("metadata") or {}).get("resourceVersion")
        if request.method in {"PUT", "PATCH"} and version:
            wanted = {"resourceVersion": version}
        for field, value in wanted.items():
            if known is not None and known["metadata"].get(field) != value:
                return _status(409, f"{path}: {field} changed", "Conflict")
        if request.method == "DELETE":
            await self._drop(path)
            return web.json_response({"kind": "Status", "status": "Success"})
        if request.method == "PATCH":
            body = _merge(copy.deepcopy(known) if known else {}, body)
            namespace = _namespace(path)
            if namespace:
                body.setdefault("metadata", {})["namespace"] = namespace
        if request.query.get("dryRun"):
            return web.json_response(body)
        if known is not None and _same(known, body):
            return web.json_response(known)
        return web.json_response(await self._store(path, body, created=known is None))

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        if since < self._oldest:
            return _status(410, "too old resource version", "Expired")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with suppress(ClientConnectionResetError):  # the client may leave at any time
            await self._follow(response, path, request.query, since)
        return response

    async def _follow(
        self, response: web.StreamResponse, path: str, query: Mapping[str, str], since: int
    ) -> None:
        while not self._closing:
            async with self._moved:
                await self._moved.wait_for(
                    lambda: self._closing or self._oldest > since or self._version > since  # noqa: B023 - awaited in the same turn of the loop
                )
                fresh = [entry for entry in self._history if entry[0] > since]
                expired = self._oldest > since
                since = self._version
            if expired:
                await _send(response, "ERROR", {"kind": "Status", "code": 410, "message": "gone"})
                break
            for _, kind, key, item in fresh:
                if _belongs(key, path) and _selected(item, query):
                    await _send(response, kind, item)
            await _send(response, "BOOKMARK", {"metadata": {"resourceVersion": str(since)}})


async def _send(response: web.StreamResponse, kind: str, item: Object) -> None:
    await response.write(msgspec.json.encode({"type": kind, "object": item}) + b"\n")


def _status(code: int, message: str, reason: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason},
        status=code,
    )


def _not_found(path: str) -> web.Response:
    return _status(404, f"{path} not found", "NotFound")


def _parts(path: str) -> list[str]:
    """Return the path's segments after the group and version."""
    segments = path.strip("/").split("/")
    return segments[2:] if segments[0] == "api" else segments[3:]


def _is_collection(path: str) -> bool:
    parts = _parts(path)
    return len(parts) in {1, 3} and not (len(parts) == 1 and parts[0] == "")


def _namespace(path: str) -> str | None:
    parts = _parts(path)
    return parts[1] if len(parts) > 2 and parts[0] == "namespaces" else None  # noqa: PLR2004


def _belongs(key: str, collection: str) -> bool:
    """Whether an object's path lies in a collection; one without namespace spans them all."""
    if key.rsplit("/", 1)[0] == collection:
        return True
    parts = _parts(key)
    return _namespace(key) is not None and collection == key.removesuffix(
        "/" + "/".join(parts)
    ) + "/" + "/".join(parts[2:-1])


def _selected(item: Object, query: Mapping[str, str]) -> bool:
    labels = item.get("metadata", {}).get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if labels.get(name) != value.lstrip("="):
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        field, _, value = term.partition("=")
        found: Any = item
        for part in field.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if str(found if found is not None else "") != value.lstrip("="):
            return False
    return True


def _merge(target: Object, patch: Object) -> Object:
    """Apply a JSON merge patch (RFC 7396)."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            known = target.get(key)
            target[key] = _merge(known if isinstance(known, dict) else {}, value)
        else:
            target[key] = copy.deepcopy(value)
    return target


def _same(known: Object, body: Object) -> bool:
    """Whether a write changes nothing: the real server then keeps the resourceVersion."""

    def stripped(item: Object) -> Object:
        metadata = {
            k: v for k, v in item.get("metadata", {}).items() if k not in {"uid", "resourceVersion"}
        }
        return {**item, "metadata": metadata}

    return stripped(known) == stripped(body)
