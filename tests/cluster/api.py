"""The cluster's API server, spoken to from outside its namespaces, through the supervisor's relay.

A request costs a millisecond where starting kubectl costs a tenth of a second, and a watch sees a
change when it happens.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.cluster.errors import CommandError, WaitError
from tests.cluster.wire import API_SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
RETRY_SECONDS = 0.05

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """Where the objects of one kind are."""

    prefix: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the path of a collection, or of one object in it."""
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.prefix}{scope}/{self.plural}" + (f"/{name}" if name else "")


class _Connection(http.client.HTTPSConnection):
    def __init__(self, path: Path, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__("127.0.0.1", 6443, context=context, timeout=timeout)
        self._path, self._tls = path, context

    def connect(self) -> None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            plain.settimeout(self.timeout)
            plain.connect(str(self._path))
            self.sock = self._tls.wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise


class Api:
    """The API server as the cluster's admin sees it."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / API_SOCKET
        self._context = ssl.create_default_context(cafile=str(directory / "certs" / "ca.crt"))
        self._token = (directory / "certs" / "admin.token").read_text()
        self._kinds: dict[str, Resource] = {}

    def connect(self, timeout_seconds: float = 30.0) -> http.client.HTTPSConnection:
        """Return a connection of one's own, for many requests; it is opened by the first."""
        return _Connection(self._socket, self._context, timeout_seconds)

    def headers(self, method: str, accept: str = "application/json") -> dict[str, str]:
        """Return what a request needs to be the admin's."""
        patch = "merge-patch+json" if method == "PATCH" else "json"
        return {
            "Authorization": f"Bearer {self._token}",
            "Accept": accept,
            "Content-Type": f"application/{patch}",
        }

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        accept: str = "application/json",
        timeout_seconds: float = 30.0,
    ) -> bytes:
        """Send one request and return the answer's body.

        Raises:
            CommandError: the server refused it, or cannot be reached.
        """
        connection = self.connect(timeout_seconds)
        headers = self.headers(method, accept)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise CommandError(f"{method} {path}: {answer.status} {content.decode()[:2000]}")
        return content

    def get(self, path: str) -> Object:
        """Return the JSON object at a path."""
        found: Object = json.loads(self.request("GET", path))
        return found

    def resource(self, kind: str) -> Resource:
        """Return where a kind's objects are; it may be a plural, a singular, a kind or short."""
        wanted = kind.lower()
        if wanted not in self._kinds:
            self._discover()
        if wanted not in self._kinds:
            raise CommandError(f"the API server knows no kind {kind!r}")
        return self._kinds[wanted]

    def items(self, kind: str, namespace: str | None = None) -> list[Object]:
        """Return all objects of a kind, in one namespace or in all."""
        path = self.resource(kind).path(namespace)
        found: list[Object] = self.get(path)["items"]
        return found

    def wait(
        self,
        kind: str,
        predicate: Callable[[list[Object]], bool],
        *,
        namespace: str | None = None,
        name: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> list[Object]:
        """Return the objects of a kind as soon as ``predicate`` holds for all of them together.

        Raises:
            WaitError: it did not in time; the message has the objects as last seen.
        """
        deadline = time.monotonic() + timeout_seconds
        query = {"fieldSelector": f"metadata.name={name}"} if name else {}
        path = self.resource(kind).path(namespace)
        while True:
            listed = self.get(f"{path}?{urlencode(query)}")
            seen = {_key(item): item for item in listed["items"]}
            if predicate(list(seen.values())):
                return list(seen.values())
            version = listed["metadata"]["resourceVersion"]
            for event in self._watch(path, {**query, "resourceVersion": version}, deadline):
                item = event["object"]
                if event["type"] == "ERROR":
                    break  # too old a version: list again
                if event["type"] == "DELETED":
                    seen.pop(_key(item), None)
                elif event["type"] != "BOOKMARK":
                    seen[_key(item)] = item
                if predicate(list(seen.values())):
                    return list(seen.values())
            if time.monotonic() >= deadline:
                what = f"{kind} {name}" if name else kind
                state = json.dumps([_without_noise(i) for i in seen.values()], indent=1)
                raise WaitError(
                    f"{what} is not as wanted after {timeout_seconds:.0f} s; last seen:\n{state}"
                )

    def follow_log(
        self, namespace: str, pod: str, container: str | None, timeout_seconds: float
    ) -> Iterator[str]:
        """Yield a container's lines as it writes them, until it ends or the time is over."""
        query = {"follow": "true"} | ({"container": container} if container else {})
        path = f"{self.resource('pods').path(namespace, pod)}/log?{urlencode(query)}"
        for line in self._stream(path, time.monotonic() + timeout_seconds):
            yield line.decode(errors="replace")

    def _watch(
        self, path: str, query: Mapping[str, str], deadline: float
    ) -> Iterator[Mapping[str, Any]]:
        for line in self._stream(f"{path}?{urlencode({**query, 'watch': 'true'})}", deadline):
            yield json.loads(line)

    def _stream(self, path: str, deadline: float) -> Iterator[bytes]:
        remaining = max(deadline - time.monotonic(), 0.05)
        connection = _Connection(self._socket, self._context, remaining)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                time.sleep(RETRY_SECONDS)
                return
            while line := answer.readline():
                yield line
                if connection.sock is not None:
                    connection.sock.settimeout(max(deadline - time.monotonic(), 0.01))
        except (TimeoutError, OSError, http.client.HTTPException):
            time.sleep(RETRY_SECONDS)  # the server is away for a moment, or the deadline has come
        finally:
            connection.close()

    def _discover(self) -> None:
        for root in ("/api", "/apis"):
            listed = json.loads(self.request("GET", root, accept=DISCOVERY))
            for group in listed["items"]:
                name = group["metadata"].get("name", "")
                for version in group["versions"]:
                    number = version["version"]
                    prefix = f"/apis/{name}/{number}" if name else f"/api/{number}"
                    for raw in version.get("resources", ()):
                        self._enter(prefix, raw)

    def _enter(self, prefix: str, raw: Mapping[str, Any]) -> None:
        found = Resource(prefix, raw["resource"], raw["scope"] == "Namespaced")
        names = [raw["resource"], raw.get("singularResource"), *raw.get("shortNames", ())]
        names.append(raw.get("responseKind", {}).get("kind", ""))
        for name in names:
            if name:
                self._kinds.setdefault(name.lower(), found)


def _key(item: Object) -> tuple[str, str]:
    metadata = item.get("metadata", {})
    return metadata.get("namespace", ""), metadata.get("name", "")


def _without_noise(item: Object) -> Object:
    metadata = {k: v for k, v in item.get("metadata", {}).items() if k != "managedFields"}
    return {**item, "metadata": metadata}
